"""How training images are varied, in the order: pixels, normalised images, pairs of examples."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.word import Word

PIXELS, NORMALISED, PAIRS = range(3)


class Augment(Word):
    """An augmentation. `stage`: what it acts on; `augment` lists words in the order of stages."""

    place: ClassVar[str] = "an augmentation"
    stage: ClassVar[int] = PIXELS


class PadCrop(Augment):
    """`pad_crop(4)`: pad by so many pixels, then crop the old size at random."""

    positional: ClassVar[int] = 1
    pixels: Annotated[int, Field(gt=0)]


class Flip(Augment):
    """`flip()`: left-right, with probability p."""

    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5


class RandomResizedCrop(Augment):
    """`random_resized_crop(224)`: a random part of random shape, resized."""

    positional: ClassVar[int] = 1
    size: Annotated[int, Field(gt=0)]


class RandAugment(Augment):
    """`rand_augment(n=2, m=9)`: n random operations an image, at magnitude m of 0..30."""

    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=0, le=30)] = 9


class TrivialAugment(Augment):
    """`trivial_augment()`: one random operation an image, at a random magnitude."""


class ColorJitter(Augment):
    """`color_jitter(brightness=0.4)`: random factors of 1 - x .. 1 + x; hue in turns."""

    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Erase(Augment):
    """`erase(0.25)`: a random box becomes the mean of the data, with probability p."""

    stage: ClassVar[int] = NORMALISED
    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5


class MixUp(Augment):
    """`mixup(0.2)`: pairs of examples in part, the share from Beta(alpha, alpha)."""

    word: ClassVar[str] = "mixup"
    stage: ClassVar[int] = PAIRS
    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]


class CutMix(Augment):
    """`cutmix(1.0)`: a box of another image, its area's share from Beta(alpha, alpha)."""

    word: ClassVar[str] = "cutmix"
    stage: ClassVar[int] = PAIRS
    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]
