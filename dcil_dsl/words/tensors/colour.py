"""Changes of pixel values, for batches whose images differ in the amount.

In:   uint8 images (B, C, H, W), C 1 or 3; for each image how much, (B,) on the images' device.
Out:  uint8 images.
Not:  nothing is drawn at random: the words do that (words/augment.py).

Each function is the one of torchvision.transforms.v2.functional that it is named after, which
takes one amount for the whole batch. Sums may round the other way: one level of 255, rarely.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dcil_dsl.diagnostics.optional import library

one_amount = library("torchvision.transforms.v2.functional")

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision and Pillow have it


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _levels(images.float() * _wide(factor))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Grey images have none, and stay."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Between the image and its mean over 3 x 3 pixels (the middle one five-fold); edges stay."""
    channels, height, width = images.shape[1:]
    if height <= 2 or width <= 2:
        return images
    # Whole numbers, which a device that multiplies in tf32 adds up exactly.
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    result = images.float()
    blurred = F.conv2d(result, kernel.expand(channels, 1, 3, 3), groups=channels)
    blurred = (blurred / 13).round()
    inner = result[..., 1:-1, 1:-1]
    inner += (1 - _wide(factor)) * (blurred - inner)
    return _levels(result)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a whole turn. Grey images have none, and stay.

    hue, saturation and value as A. R. Smith 1978 defines them; white, grey and black have hue 0.
    """
    if images.shape[1] == 1:
        return images
    r, g, b = rgb = (images.float() / 255).unbind(1)
    top, bottom = torch.stack(rgb).amax(0), torch.stack(rgb).amin(0)
    spread = top - bottom
    safe = torch.where(spread == 0, 1, spread)
    sixth = torch.where(
        top == r, (g - b) / safe, torch.where(top == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sixth = (sixth + 6 * shift[:, None, None]).remainder(6)
    # With n = 5, 3, 1 for red, green, blue: value - spread * min(k, 4 - k, 1), k = n + 6 hue mod 6.
    n = torch.arange(5.0, 0.0, -2.0, device=images.device)[:, None, None]
    k = (n + sixth[:, None]) % 6
    away = torch.minimum(k, 4 - k).clamp(0, 1)
    turned = top[:, None] - spread[:, None] * away
    # One level has an equal share of 0..1, as torchvision's to_dtype has it.
    return (turned * (256 - 1e-3)).clamp(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `count` of the eight bits."""
    shift = (8 - bits).to(torch.int32)
    mask = (255 >> shift) << shift
    return images & _wide(mask).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values at or above the threshold (0..255)."""
    return torch.where(images >= _wide(threshold), 255 - images, images)


def autocontrast(images: Tensor, unused: Tensor) -> Tensor:
    return cast(Tensor, one_amount.autocontrast(images))


def equalize(images: Tensor, unused: Tensor) -> Tensor:
    return cast(Tensor, one_amount.equalize(images))


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    factor = _wide(factor)
    return _levels(images.float() * factor + others * (1 - factor))


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    r, g, b = images.float().unbind(1)
    return (r * LUMA[0] + g * LUMA[1] + b * LUMA[2]).floor()[:, None]


def _levels(images: Tensor) -> Tensor:
    return images.clamp(0, 255).to(torch.uint8)
