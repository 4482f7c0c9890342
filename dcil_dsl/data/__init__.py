"""Data sets from disk to the device: torchvision's sets and transforms, bit-reproducible."""

from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.data.loader import Loader
from dcil_dsl.data.sources import NAMES, open_dataset

__all__ = ["NAMES", "Dataset", "Loader", "Tensors", "open_dataset"]
