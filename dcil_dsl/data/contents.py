"""The contents of a data set: a short text to compare later, and the examples of each class.

In:   a Dataset.
Out:  {part: description}, which changes when a file is added, removed or changes its size, and for
      data in memory when any number changes; counts by class number.
Not:  no file is opened: an image replaced by another of the same size is not noticed, and labels
      that are not stored next to the images are not counted.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.data.webdataset import TarShards
from dcil_dsl.diagnostics.optional import library

datasets = library("torchvision.datasets")


def contents_of(dataset: Dataset, sizes: bool = True) -> dict[str, str]:
    """{"train/cat": "500 files of 5,120,000 bytes (3f2a1b09)"}, by class, shard or part.

    sizes  include the sizes of files; else no file is accessed, and only names are compared
    """
    found: dict[str, str] = {}
    for part in ("train", "val"):
        examples: Any = getattr(dataset, part)
        if isinstance(examples, DataLoader):
            examples = examples.dataset
        match examples:
            case Tensors():
                shape = " x ".join(map(str, examples.images.shape))
                name = _digest_of(examples.images, examples.labels)
                found[part] = f"images of {shape} ({name})"
            case TensorDataset():
                shapes = " and ".join(_shape(tensor) for tensor in examples.tensors)
                found[part] = f"tensors of {shapes} ({_digest_of(*examples.tensors)})"
            case datasets.ImageFolder():
                by_class = defaultdict(list)
                for path, label in examples.samples:
                    by_class[label].append(path)
                for label, name in enumerate(examples.classes):
                    found[f"{part}/{name}"] = _files(by_class[label], sizes)
            case TarShards():
                found |= {
                    f"{part}/{os.path.basename(f)}": _files([f], sizes) for f in examples.files
                }
            case _:
                found[part] = f"{len(examples):,} examples"
    return found


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _files(paths: Iterable[str], sizes: bool) -> str:
    lines = sorted((os.path.basename(path), _size(path) if sizes else 0) for path in paths)
    digest = blake2b(repr(lines).encode(), digest_size=4).hexdigest()
    files = "1 file" if len(lines) == 1 else f"{len(lines):,} files"
    size = f" of {sum(size for _, size in lines):,} bytes" if sizes else ""
    return f"{files}{size} ({digest})"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a dangling link: reported when it is read
        return 0


def _digest_of(*tensors: Tensor) -> str:
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        # Channels may be views of one, so that there is no copy of all.
        for chunk in torch.split(tensor, 4096):
            digest.update(chunk.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def class_counts(dataset: Dataset) -> tuple[int, ...] | None:
    """One count for each of dataset.classes, 0 where a class never occurs; None where the labels
    are not known.

    They come from `labels` (data in memory), `label` (shards) or `targets` (data sets of
    torchvision): class numbers by example.
    """
    for name in ("labels", "label", "targets"):
        labels = getattr(dataset.train, name, None)
        if labels is None:
            continue
        labels = torch.as_tensor(labels)
        if labels.dim() == 1 and not labels.is_floating_point():
            return tuple(torch.bincount(labels, minlength=len(dataset.classes)).tolist())
    return None
