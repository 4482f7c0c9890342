"""Operations on images, by their numbers in a table, and how much each magnitude means.

In:   uint8 images (B, C, H, W) on the device; which operation, and how much, for each image.
Out:  uint8 images of the same size.
Not:  what the operations on values are (colour.py).

The images that get the same operation go through it together, each with an amount of its own, so
that a batch costs a fixed number of operations, and not one for each image. Tables and ranges are
those of torchvision.transforms.v2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.words.tensors import colour
from dcil_dsl.words.tensors.numbers import sent

BINS = 31  # magnitudes 0..30


# -- operations that move pixels: the inverse map of each, on coordinates around the middle ------


def shear_x(amount: Tensor, height: int, width: int) -> Tensor:
    """Rows slide by `amount` of their distance from the image's upper left corner."""
    return _maps(len(amount), {(0, 1): amount, (0, 2): amount * height / 2})


def shear_y(amount: Tensor, height: int, width: int) -> Tensor:
    return _maps(len(amount), {(1, 0): amount, (1, 2): amount * width / 2})


def translate_x(amount: Tensor, height: int, width: int) -> Tensor:
    """By whole pixels, the rest cut off."""
    return _maps(len(amount), {(0, 2): -amount.trunc()})


def translate_y(amount: Tensor, height: int, width: int) -> Tensor:
    return _maps(len(amount), {(1, 2): -amount.trunc()})


def rotate(amount: Tensor, height: int, width: int) -> Tensor:
    """Counter-clockwise, in degrees, around the middle."""
    cos, sin = (amount * (math.pi / 180)).cos(), (amount * (math.pi / 180)).sin()
    return _maps(len(amount), {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos})


def _maps(count: int, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1)
    for (row, column), value in entries.items():
        maps[:, row, column] = value
    return maps


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Each new pixel from the nearest old one, black outside. maps (B, 2, 3) from new to old."""
    height, width = images.shape[-2:]
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    to_unit = torch.tensor([[2 / width], [2 / height]])  # grid_sample's image is -1..1
    maps = sent(maps.float() * to_unit, images.device)
    places = grid.reshape(1, -1, 2) @ maps[..., :2].transpose(1, 2) + maps[:, None, :, 2]
    places = places.view(len(images), height, width, 2)
    moved = F.grid_sample(images.float(), places, mode="nearest", align_corners=False)
    return moved.to(images.dtype)


# -- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """pixels: the function on values, or the inverse map where pixels move; None: nothing."""

    pixels: Callable[..., Tensor] | None
    moves: bool = False

    def apply(self, images: Tensor, amounts: Tensor) -> Tensor:
        if self.pixels is None:
            return images
        if self.moves:
            return warp(images, self.pixels(amounts, *images.shape[-2:]))
        return self.pixels(images, sent(amounts.float(), images.device))


OPERATIONS = (
    Operation(None),
    *(Operation(move, True) for move in (shear_x, shear_y, translate_x, translate_y, rotate)),
    *map(Operation, (colour.brightness, colour.saturation, colour.contrast, colour.sharpness)),
    *map(Operation, (colour.posterize, colour.solarize, colour.autocontrast, colour.equalize)),
    Operation(colour.hue),
)
NUM_AUTOMATIC = 14  # of RandAugment and TrivialAugment: all but hue
BRIGHTNESS, SATURATION, CONTRAST, HUE = 6, 7, 8, 14


def apply_operations(images: Tensor, which: Tensor, amounts: Tensor) -> Tensor:
    """Image i goes through operation which[i], then the next column's, by amounts[i].

    which, amounts  (B, k) on the CPU, int64 and float64
    """
    images = images.clone(memory_format=torch.contiguous_format)
    for operations, amount in zip(which.unbind(1), amounts.unbind(1)):
        for number in sorted(set(operations.tolist())):
            if OPERATIONS[number].pixels is not None:
                rows = (operations == number).nonzero()[:, 0]
                at = sent(rows, images.device)
                images[at] = OPERATIONS[number].apply(images[at], amount[rows])
    return images


# -- how much -------------------------------------------------------------------------------------


def magnitudes(height: int, width: int, wide: bool) -> Tensor:
    """(operations, BINS): how much each magnitude means, without a sign.

    Brightness, saturation, contrast and sharpness are given as the distance of the factor from 1.
    """

    def upto(end: float) -> Tensor:
        return torch.linspace(0, end, BINS).double()  # float32 steps, as torchvision has them

    shear, turn, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    across, down = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    kept_bits = (8 - torch.arange(BINS) / ((BINS - 1) / bits)).round().double()
    threshold = 255 * torch.linspace(1.0, 0.0, BINS).double()
    rows = [upto(0), upto(shear), upto(shear), upto(across), upto(down), upto(turn)]
    rows += [upto(factor)] * 4 + [kept_bits, threshold, upto(0), upto(0)]
    return torch.stack(rows)


SIGNED = torch.tensor([False] + [True] * 9 + [False] * 4)
FACTORS = torch.tensor([False] * 6 + [True] * 4 + [False] * 4)


def amounts_of(which: Tensor, bins: Tensor, signs: Tensor, table: Tensor) -> Tensor:
    """How much of each operation, from its magnitude and the sign that was drawn."""
    amounts = table[which, bins]
    amounts = torch.where(signs & SIGNED[which], -amounts, amounts)
    return amounts + FACTORS[which].double()
