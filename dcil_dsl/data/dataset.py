"""The form that every source of data takes.

In:   images as uint8, and their classes.
Out:  Dataset, and Tensors for what fits in memory.
Not:  nothing is read (sources.py, folders.py), augmented (augment.py) or batched (loader.py) here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.diagnostics.optional import library


@dataclass(frozen=True)
class Tensors:
    """Examples in memory. images: uint8 (N, C, H, W); labels: whole numbers (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class TextSize:
    """Token numbers are 0 .. num_tokens - 1; every text has `length` of them."""

    num_tokens: int
    length: int


@dataclass(frozen=True)
class Dataset:
    """A training part and a held-out part, for `dcil.train` and for `--train my.py:make`.

        Dataset("mine", train, val, task="regression")

    train, val  each map-style (`len()`, and an item by its number) or a DataLoader over such a
                data set; an item is what the task reads
    task        a name of TASKS. image-classification: (uint8 CHW tensor or PIL image, class
                number); classification: (inputs, class number); multi-label: (inputs, 0 or 1 for
                each label); segmentation: (image, class numbers of its pixels); detection:
                (image, {"boxes", "labels"}); regression: (inputs, numbers); physics: (inputs,
                known solution); language-modelling: (inputs, the next tokens); embedding: (inputs,
                vector); own-loss: the arguments of the model, a tuple in their order or a
                dictionary. Inputs: a tensor, or a tuple or dictionary of arguments
    classes     the names of the classes, by their number; empty where there are none
    mean, std   of images: of each channel, scaled to 0..1
    collate     makes a batch of a list of items; None: torch's default_collate
    texts       of texts, what a model has to take
    notes       what a person should know of how the data were read
    """

    name: str
    train: Any
    val: Any
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: str = "image-classification"
    collate: Callable[[list[Any]], Any] | None = None
    texts: TextSize | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_channels(self) -> int:
        return len(self.mean)


def in_memory(
    name: str,
    train: Tensors,
    val: Tensors,
    classes: Sequence[str],
    channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """A Dataset of tensors that has `channels` channels, 1 or 3.

    mean, std  of the images as given; None, or grey made from colour: measured on `train`
    Grey becomes colour by three views of one channel, which costs no memory.
    """
    given = train.images.shape[1]
    train, val = (
        Tensors(_with_channels(part.images, channels), part.labels) for part in (train, val)
    )
    if mean is None or std is None or given > channels:
        mean, std = _statistics(train.images[:, :1] if given < channels else train.images)
    if len(mean) < channels:
        mean, std = tuple(mean) * channels, tuple(std) * channels
    return Dataset(name, train, val, tuple(classes), tuple(mean), tuple(std))


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    grey: Tensor = library("torchvision.transforms.v2.functional").rgb_to_grayscale(images)
    return grey


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, on the scale 0..1.

    From counts of the 256 values: exact, without a copy in floating point. A constant channel gets
    a deviation of 1, so that dividing by it gives no infinity.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1).int(), minlength=256).double()
        share /= share.sum()
        mean = (share * values).sum()
        means.append(mean.item())
        deviations.append((share * (values - mean) ** 2).sum().sqrt().item() or 1.0)
    return tuple(means), tuple(deviations)
