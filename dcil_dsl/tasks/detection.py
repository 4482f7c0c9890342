"""Boxes with classes, for models that are called as torchvision's detectors are.

In:   lists of images and of dictionaries with `boxes` (N, 4) and `labels` (N,).
Out:  mean average precision as COCO defines it, which needs pycocotools.
Not:  no masks and no keypoints.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.optional import is_installed
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.tasks.own_loss import OwnLoss
from dcil_dsl.tasks.task import as_call, pair


class Detection(OwnLoss):
    """An item is (image (C, H, W), {"boxes", "labels"}); boxes are left, top, right, bottom.

    The model is called with a list of each. In training mode it returns its losses, in evaluation
    mode a dictionary with `boxes`, `labels` and `scores` for each image. Label 0 is the background.
    """

    name: ClassVar[str] = "detection"
    noun: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = ("map", "map50")

    def collate(self, items: list[Any]) -> tuple[list[Any], ...]:
        """Lists: images and targets differ in size from one example to the next."""
        return tuple(list(parts) for parts in zip(*items, strict=True))

    def inputs(self, batch: Any) -> Inputs:
        return as_call(tuple(pair(self.name, batch)))

    def targets(self, batch: Any) -> Any:
        return pair(self.name, batch)[1]

    def check(self, output: Any, targets: Any) -> None:
        if not is_installed("pycocotools"):
            raise InputError(
                "the metrics of the task `detection` need pycocotools, which is not installed",
                help="pip install 'dcil-dsl[detection]'",
            )
        if not _are_tensors(output, ("boxes", "labels", "scores")):
            raise InputError(
                "the model does not return `boxes`, `labels` and `scores` for each image",
                help="in evaluation mode a detector returns a list of dictionaries",
            )
        if not _are_tensors(targets, ("boxes", "labels")):
            raise InputError(
                "the targets of a detection are a dictionary with `boxes` and `labels` for each "
                "image"
            )

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        """Boxes that are not finite are left out: they find nothing."""
        found = []
        for one in output:
            usable = one["boxes"].isfinite().all(dim=1) & one["scores"].isfinite()
            found.append({key: one[key][usable] for key in ("boxes", "labels", "scores")})
        return dict.fromkeys(self.metrics, (found, targets))

    def broken(self, output: Any, count: int) -> Tensor:
        rows = [~(one["boxes"].isfinite().all() & one["scores"].isfinite().all()) for one in output]
        return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.bool)


def _are_tensors(dictionaries: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(dictionaries, list) and all(
        isinstance(one, dict) and isinstance(one.get(key), Tensor)
        for one in dictionaries
        for key in keys
    )
