"""Models that compute their own loss: detectors, language models, and any other.

In:   the model's arguments: a tuple or list in their order, a dictionary by their names.
Out:  the mean of the loss that the model returns.
Not:  no targets: they are among the arguments. No other metric.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.tasks.task import Task, as_call
from dcil_dsl.words.losses import Loss, ModelLoss
from dcil_dsl.words.tensors.outputs import own_loss
from dcil_dsl.words.tensors.widest import widest


class OwnLoss(Task):
    """The recipe's losses are `model(path)`, and those that compare paths with each other.

    A model that returns a loss in training mode alone, as torchvision's detectors, has no metric.
    """

    name: ClassVar[str] = "own-loss"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    trained: ClassVar[str] = "loss"
    default_loss: ClassVar[str] = "model"
    returns_losses_alone: ClassVar[bool] = False  # in training mode

    def inputs(self, batch: Any) -> Inputs:
        return as_call(tuple(batch) if isinstance(batch, list) else batch)

    def targets(self, batch: Any) -> None:
        return None

    def check(self, output: Any, targets: Any) -> None:
        pass  # own_loss says at the first step what it misses in an output

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        loss = own_loss(output).detach()
        return loss.to(widest(loss.device)) * count

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        loss = loss_or_none(output)
        return {} if loss is None else {"loss": (loss, count)}

    def broken(self, output: Any, count: int) -> Tensor:
        """All examples of a batch, where its loss is not finite."""
        loss = loss_or_none(output)
        if loss is None:
            return torch.zeros(count, dtype=torch.bool)
        return (~loss.isfinite()).expand(count)

    def refuse_loss(self, loss: Loss) -> None:
        if isinstance(loss, ModelLoss):
            return
        if self.returns_losses_alone:
            raise InputError(
                f"`{loss.label}` compares outputs, and in training mode a model of the task "
                f"`{self.name}` returns its losses alone",
                help="`loss model(...)`",
            )
        if loss.needs_target:
            raise InputError(
                f"`{loss.label}` compares with targets, and this task has none",
                help="`loss model(...)`, or a data set of another task",
            )


def loss_or_none(output: Any) -> Tensor | None:
    """The loss in what a model returns, if it computes one."""
    try:
        return own_loss(output)
    except InputError:
        return None
