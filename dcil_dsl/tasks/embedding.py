"""A vector for each example, compared with a wanted one by direction.

In:   (inputs, vectors (B, K)), for example those of another network.
Out:  the mean cosine; Spearman's correlation of the similarities of pairs; the mean squared error.
Not:  no vector is scaled: cosines are blind to lengths, the squared error is not.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.tasks.regression import Regression
from dcil_dsl.words.tensors.outputs import logits_of, numbers_for
from dcil_dsl.words.tensors.widest import widest


class Embedding(Regression):
    """Spearman's correlation is over all pairs of held-out examples.

    What is ranked are the cosines between the outputs of two examples, and those between their
    wanted vectors: whether the same examples are near each other.
    """

    name: ClassVar[str] = "embedding"
    metrics: ClassVar[tuple[str, ...]] = ("cosine", "spearman", "mse")
    trained: ClassVar[str] = "cosine"
    default_loss: ClassVar[str] = "cosine"

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        own = logits_of(output)
        own, wanted = numbers_for(own, targets[: len(own)])
        wide = widest(own.device)
        return F.cosine_similarity(own.to(wide), wanted.to(wide), dim=-1).mean() * count

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        own, wanted = numbers_for(logits_of(output), targets)
        wide = widest(own.device)
        own, wanted = own.to(wide).contiguous(), wanted.to(wide).contiguous()
        cosines = F.cosine_similarity(own, wanted, dim=-1)
        return {"cosine": (cosines,), "spearman": (own, wanted), "mse": (own, wanted)}
