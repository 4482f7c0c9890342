"""One number of torchmetrics' mean average precision, which computes many.

Imported when something is measured, by its entry in METRICS.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision


class AveragePrecision(MeanAveragePrecision):  # type: ignore[misc,unused-ignore]
    """`key` of its results: map, over overlaps of 50 to 95%, or map_50."""

    def __init__(self, key: str, **more: Any):
        super().__init__(**more)
        self.key = key

    def compute(self) -> Tensor:  # type: ignore[override]
        value: Tensor = super().compute()[self.key]
        return value
