"""Predict the next token at each place of a text.

In:   (inputs, at each place the number of the token to predict (B, T)); -100 where there is none.
Out:  the mean negative log-likelihood of a token in nats, its exponential, the share predicted.
Not:  nothing is shifted here: the data set gives each place its next token (data/text.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.task import Task
from dcil_dsl.words.losses import Loss, Taught
from dcil_dsl.words.tensors.outputs import logits_of
from dcil_dsl.words.tensors.widest import widest


class LanguageModelling(Task):
    """The output has the scores of all tokens at each place: (B, T, V)."""

    name: ClassVar[str] = "language-modelling"
    noun: ClassVar[str] = "texts"
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "nll", "top1")
    trained: ClassVar[str] = "nll"
    default_loss: ClassVar[str] = "cross_entropy"

    def check(self, output: Any, targets: Any) -> None:
        logits = logits_of(output)
        if logits.dim() != 3:
            raise InputError(
                f"the model's output has shape {tuple(logits.shape)}, not (batch, positions, "
                "tokens)",
                help="hf:GPT2LMHeadModel, and the like, predict the next token",
            )
        if tuple(targets.shape[1:]) != tuple(logits.shape[1:2]):
            raise InputError(
                f"the model's output has {logits.shape[1]} positions, the targets have the shape "
                f"{tuple(targets.shape)}"
            )
        if int(targets.max()) >= logits.shape[2]:
            raise InputError(
                f"the data has a token number {int(targets.max())}, counted from 0; the model "
                f"predicts {logits.shape[2]:,} tokens"
            )

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        logits = logits_of(output)
        wide = widest(logits.device)
        losses = _of_tokens(logits, targets[: len(logits)])
        num_tokens = (targets[: len(logits)] >= 0).sum()
        mean: Tensor = losses.to(wide).sum() / num_tokens.to(wide)
        return mean * count

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        logits = logits_of(output)
        counts = targets >= 0
        losses = _of_tokens(logits, targets)[counts].to(widest(logits.device))
        return {
            "perplexity": (losses,),
            "nll": (losses,),
            "top1": (logits[counts], targets[counts]),
        }

    def broken(self, output: Any, count: int) -> Tensor:
        return ~logits_of(output).amax(dim=2).isfinite().all(dim=1)

    def refuse_loss(self, loss: Loss) -> None:
        super().refuse_loss(loss)
        if isinstance(loss, Taught) and loss.teacher is None:
            raise InputError(
                f"`{loss.label}` compares with numbers, and a token is none",
                help=f"`loss {self.default_loss}({loss.paths[0]})`",
            )


def _of_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each target in nats, 0 where there is none."""
    return F.cross_entropy(logits.float().movedim(2, 1), targets, reduction="none")
