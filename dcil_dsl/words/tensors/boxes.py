"""Random boxes of images, and how the pixels of one make a new image, for whole batches.

In:   images (B, C, H, W) on the device; random numbers drawn on the CPU, one row per image.
Out:  boxes, images of one size.
Not:  no seeds (data/chance.py), no change of a colour (colour.py).

The distributions are those of torchvision.transforms.v2 with the same settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcil_dsl.words.tensors.numbers import whole_numbers

TRIES = 10  # of torchvision, for a box that fits into the image
Range = tuple[float, float]
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # Szegedy et al. 2015, arXiv:1409.4842
ERASE_AREA, ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # Zhong et al. 2020, arXiv:1708.04896


def cut_out(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Of each image, padded with zeros, a stretch of the old size from (top, left) on."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """A box of each image, resized to size x size with antialiasing.

    Resizing is linear and separable: rows @ image @ columns^T, its own two for each image. The
    same as cropping and resizing one by one, to one level of 255 by rounding.
    """
    top, left, height, width = boxes.unbind(1)
    rows = resize_weights(top, height, images.shape[-2], size)
    columns = resize_weights(left, width, images.shape[-1], size)
    resized = rows[:, None] @ images.float() @ columns[:, None].transpose(-1, -2)
    return resized.round().clamp(0, 255).to(images.dtype)


def clear_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Zeros in a box of each image."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    row = torch.arange(images.shape[-2], device=images.device)
    column = torch.arange(images.shape[-1], device=images.device)
    rows = (top <= row) & (row < top + height)
    columns = (left <= column) & (column < left + width)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


def box_chances(chance: torch.Generator, count: int) -> Tensor:
    """What boxes for `count` images are made from: (count, TRIES + 1, 2) of [0, 1), float64."""
    return torch.rand(count, TRIES + 1, 2, generator=chance, dtype=torch.float64)


def crop_boxes(chances: Tensor, height: int, width: int) -> Tensor:
    """(B, 4) of top, left, height, width as RandomResizedCrop draws them.

    Where none of the tries fits: the middle, as much of it as the ratios allow.
    """
    low, high = CROP_RATIO
    wide = max(1, min(width, round(height * high)))
    tall = max(1, min(height, round(width / low)))
    middle = torch.tensor([(height - tall) // 2, (width - wide) // 2, tall, wide])
    areas, ratios = _areas(chances, height * width, CROP_AREA, CROP_RATIO)
    w, h = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
    return _placed(chances, h, w, fits, height, width, middle)


def erase_boxes(chances: Tensor, height: int, width: int) -> Tensor:
    """(B, 4) as RandomErasing draws them; zeros where none of the tries fits."""
    areas, ratios = _areas(chances, height * width, ERASE_AREA, ERASE_RATIO)
    h, w = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (h < height) & (w < width)
    return _placed(chances, h, w, fits, height, width, torch.zeros(4, dtype=torch.long))


def _areas(
    chances: Tensor, area: int, area_range: Range, ratio_range: Range
) -> tuple[Tensor, Tensor]:
    """Areas uniform in their range, ratios so in the logarithm; (B, TRIES) each."""
    low, high = area_range
    areas = area * (low + (high - low) * chances[:, :TRIES, 0])
    low, high = map(math.log, ratio_range)
    return areas, (low + (high - low) * chances[:, :TRIES, 1]).exp()


def _placed(
    chances: Tensor, h: Tensor, w: Tensor, fits: Tensor, height: int, width: int, otherwise: Tensor
) -> Tensor:
    """The first try that fits, at a random place inside the image."""
    first = fits.int().argmax(1, keepdim=True)
    h, w = (side.gather(1, first)[:, 0].long() for side in (h, w))
    top = whole_numbers(chances[:, TRIES, 0], (height - h + 1).clamp(min=1))
    left = whole_numbers(chances[:, TRIES, 1], (width - w + 1).clamp(min=1))
    boxes = torch.stack([top, left, h, w], 1)
    return torch.where(fits.any(1)[:, None], boxes, otherwise)


def resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """(B, size_out, size_in): how much of each old pixel goes into each new one, along one side.

    Bilinear with antialiasing over the stretch start .. start + length of each image: a triangle
    as wide as the step between new pixels, but no narrower than one old pixel, cut at the ends
    of the stretch, its sum 1.
    """
    scale = (length / size_out)[:, None, None]
    reach = scale.clamp(min=1)
    new = torch.arange(size_out, device=start.device)[:, None]
    old = torch.arange(size_in, device=start.device)
    centre = start[:, None, None] + scale * (new + 0.5)
    weights = (1 - (old + 0.5 - centre).abs() / reach).clamp(min=0)
    inside = (old >= start[:, None, None]) & (old < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)
