"""What happens to an image on its way into a batch, split between its reader and the device.

In:   the augmentations of the plan, the image size that it names, and the type of the images.
Out:  a Pipeline: what a reader does with one stored image, so that all have one size;
      Transforms of batches of uint8; Transforms of normalized batches; Mixers, and the mixed batch.
Not:  no normalization and no seeds, which are the loader's. lang checks the order of words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.optional import library
from dcil_dsl.words.augment import (
    NORMALISED,
    PIXELS,
    Augment,
    Mixer,
    Transform,
    crop_sizes,
)
from dcil_dsl.words.tensors.boxes import box_chances, crop_boxes

F = library("torchvision.transforms.v2.functional")

# The usual validation of ImageNet: the short side to 256, then the middle 224 x 224.
SHORT_SIDE = 256 / 224


@dataclass(frozen=True)
class Reading:
    """Turns a PIL image into uint8 (C, size, size) in the process that reads it.

    crops  resize a random box; else resize the short side and cut out the middle
    """

    size: int
    crops: bool

    def chances(self, chance: torch.Generator, count: int) -> Tensor | None:
        """The random numbers that `apply` needs, for each image of a batch of `count`."""
        return box_chances(chance, count) if self.crops else None

    def apply(self, image: Any, chances: Tensor | None) -> Tensor:
        # PIL shrinks large photographs faster than tensors do.
        size = [self.size, self.size]
        if self.crops and chances is not None:
            width, height = image.size
            box = crop_boxes(chances[None], height, width)[0].tolist()
            image = F.resized_crop(image, *box, size=size, antialias=True)
        else:
            image = F.resize(image, [round(self.size * SHORT_SIDE)], antialias=True)
            image = F.center_crop(image, size)
        pixels: Tensor = F.pil_to_tensor(image)
        return pixels


@dataclass(frozen=True)
class Pipeline:
    """reading: None for stored tensors of one size. resize: (H, W) for those, or None.

    size  (H, W) of the images when `pixels` begins
    """

    size: tuple[int, int]
    reading: Reading | None = None
    resize: tuple[int, int] | None = None
    pixels: tuple[Transform, ...] = ()
    normalised: tuple[Transform, ...] = ()
    mixers: tuple[Mixer, ...] = ()

    def resized(self, images: Tensor) -> Tensor:
        if self.resize is None:
            return images
        resized: Tensor = F.resize(images, list(self.resize), antialias=True)
        return resized


def train_pipeline(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Pipeline:
    """The resizing of `val_pipeline`, then the augmentations in the plan's order.

    native  (H, W) of every stored image; None: they differ, so that a batch needs an image_size,
            or random_resized_crop as the first augmentation.

    As the first augmentation, random_resized_crop takes the stored image: resizing it before would
    only blur it. Raises InputError where no size is known.
    """
    pixels = _transforms(augment, PIXELS)
    make = partial(
        Pipeline,
        normalised=_transforms(augment, NORMALISED),
        mixers=tuple(word for word in augment if isinstance(word, Mixer)),
    )
    crops_to = pixels[0].crops_to if pixels else None
    if native is not None and crops_to is not None:
        return make(native, pixels=pixels)
    if native is not None:
        size = (image_size, image_size) if image_size else native
        return make(size, resize=_unless(size, native), pixels=pixels)
    if crops_to is not None:
        return make((crops_to, crops_to), Reading(crops_to, crops=True), pixels=pixels[1:])
    if image_size is None:
        raise _no_size(augment)
    return make((image_size, image_size), Reading(image_size, crops=False), pixels=pixels)


def val_pipeline(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Pipeline:
    """Images of one size: resize to image_size, if given. Of several: short side, then the middle.

    Without an image_size, images of several sizes get the size that random_resized_crop trains on.
    """
    if native is not None:
        size = (image_size, image_size) if image_size else native
        return Pipeline(size, resize=_unless(size, native))
    crops = crop_sizes(augment)
    if image_size is None and not crops:
        raise _no_size(augment)
    image_size = image_size or crops[-1]
    return Pipeline((image_size, image_size), Reading(image_size, crops=False))


def _transforms(augment: tuple[Augment, ...], stage: int) -> tuple[Transform, ...]:
    return tuple(w for w in augment if isinstance(w, Transform) and w.stage == stage)


def _unless(size: tuple[int, int], native: tuple[int, int]) -> tuple[int, int] | None:
    return None if size == native else size


def _no_size(augment: tuple[Augment, ...]) -> InputError:
    if crop_sizes(augment):
        fact = "put `random_resized_crop` first in `augment`, or say"
    else:
        fact = "say"
    return InputError(
        "the images may differ in size, and a batch needs one size",
        f"{fact} data ... {{ image_size = 224 }} or augment = [random_resized_crop(224)] in the "
        "recipe",
    )


def mix_batch(
    images: Tensor, labels: Tensor, mixers: tuple[Mixer, ...], classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mix with one of `mixers`, which `seed` chooses for the whole batch, all equally likely."""
    chance = Random(seed)
    mixer = mixers[chance.randrange(len(mixers))]
    mixed, share = mixer.mix(images, images.roll(1, 0), chance)
    own = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return mixed, share * own + (1 - share) * own.roll(1, 0)


def neighbours(start: int, stop: int, count: int) -> list[int]:
    """Places in a batch of `count` that a part of it needs: its own and the one before."""
    return [(start - 1) % count, *range(start, stop)]
