"""Numbers for each example.

In:   (inputs, numbers (B,) or (B, K)).
Out:  mean squared and absolute error, the coefficient of determination.
Not:  targets are not standardized: the metrics have their units.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.task import Task, rows_finite
from dcil_dsl.words.losses import JS, KL, CrossEntropy, Loss
from dcil_dsl.words.tensors.outputs import logits_of, numbers_for
from dcil_dsl.words.tensors.widest import widest


class Regression(Task):
    """An output has the shape of the targets, or one more dimension of size 1 at its end.

    r2 is the mean of the coefficients of the K numbers.
    """

    name: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[str, ...]] = ("mse", "mae", "r2")
    trained: ClassVar[str] = "mse"
    default_loss: ClassVar[str] = "mse"

    def check(self, output: Any, targets: Any) -> None:
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            raise InputError(
                f"the targets of the task `{self.name}` are real numbers, in a tensor of floats",
                help="class numbers belong to the task `classification`",
            )
        own = logits_of(output)
        numbers_for(own, targets[: len(own)])
        if not rows_finite(targets).all():
            raise InputError("the targets of the first batch hold numbers that are not finite")

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        own = logits_of(output)
        own, wanted = numbers_for(own, targets[: len(own)])
        wide = widest(own.device)
        return (own.to(wide) - wanted.to(wide)).square().mean() * count

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        own, wanted = numbers_for(logits_of(output), targets)
        wide = widest(own.device)
        given = (own.to(wide).contiguous(), wanted.to(wide).contiguous())
        return dict.fromkeys(self.metrics, given)

    def broken(self, output: Any, count: int) -> Tensor:
        return ~rows_finite(logits_of(output))

    def refuse_loss(self, loss: Loss) -> None:
        super().refuse_loss(loss)
        if isinstance(loss, (CrossEntropy, KL, JS)):
            raise InputError(
                f"`{loss.label}` reads scores of classes, which the task `{self.name}` has not",
                help=f"`loss {self.default_loss}({loss.paths[0]})`",
            )
