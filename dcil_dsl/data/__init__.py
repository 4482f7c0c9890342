"""Data sets from disk to the device, augmented there in batches, reproducible bit for bit.

Imported when first used: datasets.py reports missing data before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcil_dsl.data.dataset import Dataset, Tensors
    from dcil_dsl.data.datasets import DATASETS
    from dcil_dsl.data.loader import Loader
    from dcil_dsl.data.sources import open_dataset

_PUBLIC = {
    "Dataset": "dataset",
    "Tensors": "dataset",
    "Loader": "loader",
    "DATASETS": "datasets",
    "open_dataset": "sources",
}
__all__ = ["DATASETS", "Dataset", "Loader", "Tensors", "open_dataset"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
