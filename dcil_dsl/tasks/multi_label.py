"""Several labels for each example.

In:   (inputs, for each label 0 or 1, (B, K)).
Out:  F1 of the labels, the share of labels and of examples that are right.
Not:  no thresholds: a label is predicted where its logit is above 0, its probability above 1/2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.task import Task, rows_finite
from dcil_dsl.words.losses import JS, KL, CrossEntropy, Loss
from dcil_dsl.words.tensors.outputs import logits_of, numbers_for
from dcil_dsl.words.tensors.widest import widest


class MultiLabel(Task):
    """The output has a logit for each label.

    f1 is the mean over the labels. An example with a logit that is not finite has all labels wrong.
    """

    name: ClassVar[str] = "multi-label"
    metrics: ClassVar[tuple[str, ...]] = ("f1", "label_accuracy", "exact_match")
    trained: ClassVar[str] = "label_accuracy"
    default_loss: ClassVar[str] = "binary_cross_entropy"

    def check_item(self, item: Any) -> None:
        if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Tensor):
            _refuse_odd(item[1])

    def check(self, output: Any, targets: Any) -> None:
        if not isinstance(targets, Tensor) or targets.dim() != 2:
            raise InputError(
                "the targets of a batch are not a tensor with a row of labels for each example"
            )
        own = logits_of(output)
        numbers_for(own, targets[: len(own)])
        _refuse_odd(targets)

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        own = logits_of(output)
        predicted, wanted = self._labels(own, targets[: len(own)])
        right = (predicted == wanted).to(widest(own.device)).mean()
        return right * count

    def settings(self, output: Any) -> dict[str, Any]:
        return {"num_labels": logits_of(output).shape[1]}

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        return dict.fromkeys(self.metrics, self._labels(logits_of(output), targets))

    def broken(self, output: Any, count: int) -> Tensor:
        return ~rows_finite(logits_of(output))

    def refuse_loss(self, loss: Loss) -> None:
        super().refuse_loss(loss)
        if isinstance(loss, (CrossEntropy, KL, JS)):
            raise InputError(
                f"`{loss.label}` reads scores of classes that exclude each other, which labels do "
                "not",
                help=f"`loss {self.default_loss}({loss.paths[0]})`",
            )

    def _labels(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and wanted, as whole numbers: torchmetrics takes some logits for shares."""
        wanted = targets.long()
        usable = rows_finite(logits)[:, None]
        return torch.where(usable, (logits > 0).long(), 1 - wanted), wanted


def _refuse_odd(targets: Tensor) -> None:
    if not ((targets == 0) | (targets == 1)).all():
        raise InputError(
            "its targets hold numbers other than 0 and 1",
            help="a label occurs, 1, or does not, 0; real numbers are the task `regression`",
        )
