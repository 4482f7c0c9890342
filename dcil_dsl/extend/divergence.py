"""`js`: how far the answers of two paths are apart, as the same from either side.

In:   logits of two paths.
Out:  JS, a loss.
Not:  no direction: both paths learn. `kl` has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dcil_dsl.extend.kinds import Loss
from dcil_dsl.extend.word import PathName

if TYPE_CHECKING:
    from torch import Tensor


class JS(Loss):
    """`js(one=, other=, temperature=1, output=none)`: T^2 * the Jensen-Shannon divergence.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2,  m = (p + q) / 2,  p and q the softmax of logits / T.
    From 0 to T^2 log 2. Lin 1991, "Divergence measures based on the Shannon entropy", section 4.
    """

    one: PathName
    other: PathName
    temperature: Annotated[float, Field(gt=0)] = 1.0
    output: str | None = None

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        logs = [(logits[p] / self.temperature).log_softmax(1) for p in (self.one, self.other)]
        # log m from logarithms: exp of both would lose what is small.
        middle = logs[0].logaddexp(logs[1]) - 0.6931471805599453
        both = sum((log.exp() * (log - middle)).sum(1).mean() for log in logs)
        return self.temperature**2 * both / 2
