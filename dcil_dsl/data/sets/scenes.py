"""Pictures composed of scikit-learn's handwritten digits: labels, classes of pixels, boxes.

The digits are real; where they lie is drawn, once. Training pictures are made of the 1,437 training
digits of `digits`, held-out pictures of its 360 held-out digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.data.sources import digits

NAMES = tuple(str(digit) for digit in range(10))
SIDE = 8  # pixels of a digit
LARGE, SCENE = 2 * SIDE, 8 * SIDE  # of a digit in a scene, of a scene
INK = 64  # of 0..255; a lighter pixel is background


def digits_labels(folder: None, channels: int) -> Dataset:
    """One to three digits side by side on 8 x 24 pixels: which of the ten occur?

    4,000 pictures (1, 8, 24) of 0..1, 1,000 held out. A digit that occurs twice is one label.
    """

    def draw(source: Tensors, count: int, seed: int) -> TensorDataset:
        pictures, labels = torch.zeros(count, 1, SIDE, 3 * SIDE), torch.zeros(count, 10)
        generator = torch.Generator().manual_seed(seed)
        for row in range(count):
            number = int(torch.randint(1, 4, (1,), generator=generator))
            slots = torch.randperm(3, generator=generator)[:number].tolist()
            for slot, (image, digit) in zip(slots, _some(source, number, generator), strict=True):
                pictures[row, 0, :, slot * SIDE : (slot + 1) * SIDE] = image / 255
                labels[row, digit] = 1
        return TensorDataset(pictures, labels)

    own = digits(None, 1)
    train, val = draw(own.train, 4000, 0), draw(own.val, 1000, 1)
    return Dataset("digits-labels", train, val, NAMES, task="multi-label")


def digits_masks(folder: None, channels: int) -> Dataset:
    """The class of each pixel of a scene: 0 is the background, digit d is d + 1.

    1,000 pictures (3, 64, 64) of 0..1, 250 held out.
    """

    def draw(source: Tensors, count: int, seed: int) -> TensorDataset:
        scenes = list(_scenes(source, count, seed))
        classes = torch.zeros(count, SCENE, SCENE, dtype=torch.long)
        for row, (_, placed) in enumerate(scenes):
            for one in placed:
                place = (row, slice(one.top, one.top + LARGE), slice(one.left, one.left + LARGE))
                classes[place] = torch.where(one.image >= INK, one.digit + 1, 0)
        return TensorDataset(torch.stack([picture for picture, _ in scenes]), classes)

    own = digits(None, 1)
    train, val = draw(own.train, 1000, 0), draw(own.val, 250, 1)
    return Dataset("digits-masks", train, val, ("background", *NAMES), task="segmentation")


def digits_boxes(folder: None, channels: int) -> Dataset:
    """The digits of a scene, each with the box around its ink: digit d has the label d + 1.

    1,000 pictures (3, 64, 64) of 0..1, 250 held out. Boxes are left, top, right, bottom.
    """

    def draw(source: Tensors, count: int, seed: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        return [
            (
                picture,
                {
                    "boxes": torch.stack([one.box() for one in placed]),
                    "labels": torch.tensor([one.digit + 1 for one in placed]),
                },
            )
            for picture, placed in _scenes(source, count, seed)
        ]

    own = digits(None, 1)
    train, val = draw(own.train, 1000, 0), draw(own.val, 250, 1)
    return Dataset("digits-boxes", train, val, ("background", *NAMES), task="detection")


@dataclass(frozen=True)
class Placed:
    """A digit of a scene. image: (16, 16) of 0..255; top, left: of its corner."""

    image: Tensor
    digit: int
    top: int
    left: int

    def box(self) -> Tensor:
        rows, columns = (self.image >= INK).nonzero().unbind(1)
        ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        return torch.stack(ends).float() + torch.tensor([self.left, self.top] * 2)


def _scenes(source: Tensors, count: int, seed: int) -> Iterator[tuple[Tensor, list[Placed]]]:
    """Two to four digits of 16 x 16 in cells of 4 by 4, so that none covers another."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        number = int(torch.randint(2, 5, (1,), generator=generator))
        cells = torch.randperm(16, generator=generator)[:number].tolist()
        picture, placed = torch.zeros(SCENE, SCENE), []
        for cell, (image, digit) in zip(cells, _some(source, number, generator), strict=True):
            large = F.interpolate(image[None, None], scale_factor=2.0, mode="bilinear")[0, 0]
            one = Placed(large, digit, cell // 4 * LARGE, cell % 4 * LARGE)
            picture[one.top : one.top + LARGE, one.left : one.left + LARGE] = large / 255
            placed.append(one)
        yield picture.expand(3, -1, -1), placed


def _some(source: Tensors, number: int, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
    """Some of the digits: images (8, 8) of 0..255, and what they show."""
    for index in torch.randint(len(source), (number,), generator=generator).tolist():
        image, digit = source[index]
        yield image[0].float(), digit
