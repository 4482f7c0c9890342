"""What happens to an image on its way into a batch, shared out between its reader and the device.

In:   the augmentations of the plan, the image size it asks for, and what the images are.
Out:  a Pipeline: what a reader does with one image as it lies, so that all have one size; Steps on
      whole batches of uint8; Steps on normalised batches; Mixers.
Not:  no normalisation and no seeds, which are the loader's. The order of words is lang's to check.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dcil_dsl.data.geometry import (
    Erase,
    Flip,
    PadCrop,
    ResizedCrop,
    Step,
    box_chances,
    crop_boxes,
)
from dcil_dsl.data.mixing import CutMix, Mixer, MixUp
from dcil_dsl.data.policies import ColorJitter, RandAugment, TrivialAugment
from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.augment import Augment

# The usual validation of ImageNet: the short side to 256, then the middle 224 x 224.
SHORT_SIDE = 256 / 224

PIXELS = {  # by the word of the language, with its settings by their names
    "pad_crop": PadCrop,
    "flip": Flip,
    "random_resized_crop": ResizedCrop,
    "rand_augment": RandAugment,
    "trivial_augment": TrivialAugment,
    "color_jitter": ColorJitter,
}
NORMALISED = {"erase": Erase}
MIXERS = {"mixup": MixUp, "cutmix": CutMix}


@dataclass(frozen=True)
class Reading:
    """What is done with a PIL image where it is read; out comes uint8 (C, size, size).

    crops  a random box of it, resized; else the short side is resized, and the middle cut out
    """

    size: int
    crops: bool

    def chances(self, chance: torch.Generator, count: int) -> Tensor | None:
        """What apply needs for each image of a batch of `count`."""
        return box_chances(chance, count) if self.crops else None

    def apply(self, image: Image.Image, chances: Tensor | None) -> Tensor:
        # PIL shrinks large photographs faster than tensors do.
        size = [self.size, self.size]
        if self.crops:
            width, height = image.size
            box = crop_boxes(chances[None], height, width)[0].tolist()
            image = F.resized_crop(image, *box, size=size, antialias=True)
        else:
            image = F.resize(image, [round(self.size * SHORT_SIDE)], antialias=True)
            image = F.center_crop(image, size)
        return F.pil_to_tensor(image)


@dataclass(frozen=True)
class Pipeline:
    """reading: None where images lie as tensors of one size. resize: (H, W) for those, or None.

    size  (H, W) of the images when `pixels` begins
    """

    size: tuple[int, int]
    reading: Reading | None = None
    resize: tuple[int, int] | None = None
    pixels: tuple[Step, ...] = ()
    normalised: tuple[Step, ...] = ()
    mixers: tuple[Mixer, ...] = ()

    def resized(self, images: Tensor) -> Tensor:
        if self.resize is None:
            return images
        return F.resize(images, list(self.resize), antialias=True)


def train_pipeline(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Pipeline:
    """The resizing of `val_pipeline`, then the augmentations in the plan's order.

    native  (H, W) of every image as it lies; None: they differ, so that a batch needs an
            image_size or a random_resized_crop before all else.

    Where random_resized_crop comes first it takes the image as it lies: resized before, it would
    only be blurred. Raises InputError for a word that is not built and where no size is known.
    """
    _check_built(augment)
    pixels = _made(augment, PIXELS)
    more = dict(normalised=_made(augment, NORMALISED), mixers=_made(augment, MIXERS))
    crops_first = bool(pixels) and isinstance(pixels[0], ResizedCrop)
    if native is not None and crops_first:
        return Pipeline(native, pixels=pixels, **more)
    if native is not None:
        size = (image_size, image_size) if image_size else native
        return Pipeline(size, resize=_unless(size, native), pixels=pixels, **more)
    if crops_first:
        side = pixels[0].size
        return Pipeline((side, side), Reading(side, crops=True), pixels=pixels[1:], **more)
    if image_size is None:
        raise _no_size(augment)
    size = (image_size, image_size)
    return Pipeline(size, Reading(image_size, crops=False), pixels=pixels, **more)


def val_pipeline(
    augment: tuple[Augment, ...], image_size: int | None, native: tuple[int, int] | None
) -> Pipeline:
    """Images of one size: resized to image_size, if given. Of many: short side, then the middle.

    Without an image_size, images of many sizes are cut to the size that random_resized_crop
    trains on.
    """
    if native is not None:
        size = (image_size, image_size) if image_size else native
        return Pipeline(size, resize=_unless(size, native))
    crops = [step.size for step in _made(augment, PIXELS) if isinstance(step, ResizedCrop)]
    if image_size is None and not crops:
        raise _no_size(augment)
    image_size = image_size or crops[-1]
    return Pipeline((image_size, image_size), Reading(image_size, crops=False))


def _check_built(augment: tuple[Augment, ...]) -> None:
    for entry in augment:
        if entry.called not in PIXELS | NORMALISED | MIXERS:
            raise InputError(f"the augmentation `{entry.called}` is not built yet")


def _made(augment: tuple[Augment, ...], kind: dict[str, type]) -> tuple:
    return tuple(kind[entry.called](**entry.model_dump()) for entry in augment if entry.called in kind)


def _unless(size: tuple[int, int], native: tuple[int, int]) -> tuple[int, int] | None:
    return None if size == native else size


def _no_size(augment: tuple[Augment, ...]) -> InputError:
    if any(entry.called == "random_resized_crop" for entry in augment):
        fact = "put `random_resized_crop` first in `augment`, or say"
    else:
        fact = "say"
    return InputError(
        "the images may differ in size, and a batch needs one size",
        f"{fact} data ... {{ image_size = 224 }} or augment = [random_resized_crop(224)] in the "
        "recipe",
    )
