"""A class for each pixel.

In:   (images, class numbers (B, H, W)).
Out:  the mean intersection over union of the classes, the share of pixels that are right.
Not:  no resizing: the output has the size of the targets.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.task import Task
from dcil_dsl.words.losses import MSE, BinaryCrossEntropy, Loss
from dcil_dsl.words.tensors.outputs import IGNORED, logits_of, target_for
from dcil_dsl.words.tensors.widest import widest


class Segmentation(Task):
    """Logits (B, C, H, W), or the entry `out` of a dictionary, as torchvision's models have them.

    Pixels of class -100 count for nothing. A pixel with a logit that is not finite is wrong. A
    class that neither occurs nor is predicted has no part in the mean.
    """

    name: ClassVar[str] = "segmentation"
    noun: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy")
    trained: ClassVar[str] = "pixel_accuracy"
    default_loss: ClassVar[str] = "cross_entropy"

    def check(self, output: Any, targets: Any) -> None:
        logits = logits_of(output)
        if logits.dim() != 4:
            raise InputError(
                f"the model's output has shape {tuple(logits.shape)}, not (batch, classes, height, "
                "width)"
            )
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            raise InputError("the targets of a segmentation are class numbers, a whole number each")
        target_for(logits, targets[: len(logits)])
        used = targets[targets != IGNORED]
        if used.numel() and (int(used.min()) < 0 or int(used.max()) >= logits.shape[1]):
            odd = int(used.min()) if int(used.min()) < 0 else int(used.max())
            raise InputError(
                f"the data has a class number {odd}, counted from 0; the model has "
                f"{logits.shape[1]} classes",
                help=f"a pixel without a class, 255 in many data sets, is {IGNORED} here",
            )

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        logits = logits_of(output)
        predicted, wanted = self._classes(logits, targets[: len(logits)])
        wide = widest(logits.device)
        num = (wanted != IGNORED).sum().clamp(min=1)
        return (predicted == wanted).sum().to(wide) / num * count

    def settings(self, output: Any) -> dict[str, Any]:
        return {"num_classes": logits_of(output).shape[1], "ignore_index": IGNORED}

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        return dict.fromkeys(self.metrics, self._classes(logits_of(output), targets))

    def broken(self, output: Any, count: int) -> Tensor:
        return ~logits_of(output).isfinite().flatten(1).all(dim=1)

    def refuse_loss(self, loss: Loss) -> None:
        super().refuse_loss(loss)
        of_targets = isinstance(loss, MSE) and loss.teacher is None
        if of_targets or isinstance(loss, BinaryCrossEntropy):
            raise InputError(
                f"`{loss.label}` compares numbers, and the targets here are classes of pixels",
                help=f"`loss {self.default_loss}({loss.paths[0]})`",
            )

    def _classes(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        predicted = logits.argmax(dim=1)
        other = (targets.clamp(min=0) + 1) % logits.shape[1]
        return torch.where(logits.isfinite().all(dim=1), predicted, other), targets
