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
from dcil_dsl.tasks.task import as_call, described, pair


class Detection(OwnLoss):
    """An item is (image (C, H, W), {"boxes", "labels"}); boxes are left, top, right, bottom.

    The model is called with a list of each. In training mode it returns its losses, in evaluation
    mode a dictionary with `boxes`, `labels` and `scores` for each image. Label 0 is the background.
    """

    name: ClassVar[str] = "detection"
    noun: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = ("map", "map50")
    returns_losses_alone: ClassVar[bool] = True

    def collate(self, items: list[Any]) -> tuple[list[Any], ...]:
        """Lists: images and targets differ in size from one example to the next."""
        return tuple(list(parts) for parts in zip(*items, strict=True))

    def check_item(self, item: Any) -> None:
        """Refuse a target that detectors would learn from in silence, or end at."""
        if isinstance(item, (tuple, list)) and len(item) == 2:
            _refuse_odd(item[1])

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


def _refuse_odd(target: Any) -> None:
    if not _are_tensors([target], ("boxes", "labels")):
        raise InputError(
            f"its target is {described(target)}; the task `detection` reads a "
            "dictionary with the tensors `boxes` and `labels`",
            help='{"boxes": (N, 4) as left, top, right, bottom in pixels, "labels": (N,) from 1}',
        )
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise InputError(
            f"its boxes have the shape {tuple(boxes.shape)} and its labels "
            f"{tuple(labels.shape)}, not (N, 4) and (N,)",
            help="an image without a box has boxes of the shape (0, 4)",
        )
    if not boxes.is_floating_point() or labels.dtype != torch.int64:
        raise InputError(
            f"its boxes are of {boxes.dtype} and its labels of {labels.dtype}, not of float32 and "
            "int64".replace("torch.", "")
        )
    if not len(boxes):
        return
    if int(labels.min()) < 1:
        raise InputError(
            f"a box has the label {int(labels.min())}, and 0 is the background",
            help="count the classes of boxes from 1",
        )
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):  # also where one is not a number
        worst = boxes[~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)][0].tolist()
        raise InputError(
            f"a box is {worst}, and boxes are left, top, right, bottom",
            help="torchvision.ops.box_convert(boxes, 'xywh', 'xyxy') converts left, top, width, "
            "height",
        )
    if float(boxes.max()) <= 1:
        raise InputError(
            f"all its boxes lie between 0 and 1: {boxes[0].tolist()}; boxes are in pixels",
            help="multiply them with the width and the height of the image",
        )


def _are_tensors(dictionaries: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(dictionaries, list) and all(
        isinstance(one, dict) and isinstance(one.get(key), Tensor)
        for one in dictionaries
        for key in keys
    )
