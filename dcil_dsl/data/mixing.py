"""Pairs of examples mixed into one: the image in part, and the label as much.

In:   normalised images (B, C, H, W) and class numbers (B,), on the device.
Out:  mixed images, and labels that are shares of classes (B, classes), float32.
Not:  no loss (training/losses.py takes both kinds of labels).

Every example is mixed with the one before it in the batch, the first with the last; epochs are
shuffled, so that this is a random other. One share for the whole batch, from Beta(alpha, alpha).
As torchvision.transforms.v2.MixUp and CutMix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True)
class MixUp:
    """x = share * x + (1 - share) * before. Zhang et al. 2018, arXiv:1710.09412."""

    alpha: float

    def mix(self, images: Tensor, before: Tensor, chance: Random) -> tuple[Tensor, float]:
        """The mixed images, and the share of their own labels."""
        share = chance.betavariate(self.alpha, self.alpha)
        return images * share + before * (1 - share), share


@dataclass(frozen=True)
class CutMix:
    """A box of the other image in its place; the label's share is its part of the area.

    Yun et al. 2019, arXiv:1905.04899.
    """

    alpha: float

    def mix(self, images: Tensor, before: Tensor, chance: Random) -> tuple[Tensor, float]:
        share = chance.betavariate(self.alpha, self.alpha)
        height, width = images.shape[-2:]
        x, y = chance.randrange(width), chance.randrange(height)
        half = 0.5 * math.sqrt(1 - share)  # of the side of a box with an area of 1 - share
        half_width, half_height = int(half * width), int(half * height)
        left, right = max(x - half_width, 0), min(x + half_width, width)
        top, bottom = max(y - half_height, 0), min(y + half_height, height)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = before[..., top:bottom, left:right]
        return mixed, 1 - (right - left) * (bottom - top) / (width * height)


Mixer = MixUp | CutMix


def mix_batch(
    images: Tensor, labels: Tensor, mixers: tuple[Mixer, ...], classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mix by one of `mixers`, each as likely, chosen for the whole batch by `seed`."""
    chance = Random(seed)
    mixer = mixers[chance.randrange(len(mixers))]
    mixed, share = mixer.mix(images, images.roll(1, 0), chance)
    own = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return mixed, share * own + (1 - share) * own.roll(1, 0)


def neighbours(start: int, stop: int, count: int) -> list[int]:
    """Places in a batch of `count` that a stretch of it needs: the one before it, and its own."""
    return [(start - 1) % count, *range(start, stop)]
