"""Pairs of examples mixed into one: the image in part, and the label as much.

In:   normalised images (B, C, H, W) and class numbers (B,), on the device.
Out:  mixed images, and labels that are shares of classes (B, classes), float32.
Not:  no loss (training/losses.py takes both kinds of labels), and not how two images mix
      (words/augment.py).

Every example is mixed with the one before it in the batch, the first with the last; epochs are
shuffled, so that this is a random other.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from dcil_dsl.words.augment import Mixer


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
