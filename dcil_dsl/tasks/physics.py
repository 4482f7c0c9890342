"""Physics-informed networks: an equation as the loss, a known solution to be compared with.

In:   (the model's arguments, the known solution at the points of a held-out example).
Out:  the relative error of the solution.
Not:  no equation: the model computes its terms (zoo/physics.py has one).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dcil_dsl.model.inputs import Inputs
from dcil_dsl.tasks.own_loss import OwnLoss
from dcil_dsl.tasks.task import as_call, pair, rows_finite
from dcil_dsl.words.tensors.outputs import logits_of, numbers_for
from dcil_dsl.words.tensors.widest import widest


class Physics(OwnLoss):
    """In training mode the model returns the terms of its loss, in evaluation mode the solution.

    Each term has a loss of its own in the recipe, `model(path, output="residual")`, or all have
    one, `model(path)`. The known solution is only compared with: no loss reads it.
    """

    name: ClassVar[str] = "physics"
    noun: ClassVar[str] = "points"
    metrics: ClassVar[tuple[str, ...]] = ("relative_l2",)
    returns_losses_alone: ClassVar[bool] = True

    def inputs(self, batch: Any) -> Inputs:
        return as_call(pair(self.name, batch)[0])

    def targets(self, batch: Any) -> Any:
        return pair(self.name, batch)[1]

    def check(self, output: Any, targets: Any) -> None:
        own = logits_of(output)
        numbers_for(own, targets[: len(own)])

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        own, known = numbers_for(logits_of(output), targets)
        wide = widest(own.device)
        return {"relative_l2": (own.to(wide), known.to(wide))}

    def broken(self, output: Any, count: int) -> Tensor:
        return ~rows_finite(logits_of(output))
