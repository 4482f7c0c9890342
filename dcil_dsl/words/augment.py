"""How training images are varied, in the order: pixels, normalised images, pairs of examples.

In:   images of a batch, on the device; random numbers drawn on the CPU.
Out:  one class for each augmentation, and the kinds of them.
Not:  no seeds, no order of batches (data/loader.py).

The distributions are those of torchvision.transforms.v2 with the same settings.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.word import Word

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dcil_dsl.words.tensors.numbers import Draws

PIXELS, NORMALISED, PAIRS = range(3)


# -- kinds -----------------------------------------------------------------------------------------


class Augment(Word):
    """An augmentation. `stage`: what it acts on; `augment` lists words in the order of stages."""

    place: ClassVar[str] = "an augmentation"
    stage: ClassVar[int] = PIXELS

    @property
    def crops_to(self) -> int | None:
        """The side of the images that it cuts out of images of any size; None: it does not."""
        return None


class Transform(Augment):
    """An augmentation of single images, a whole batch at a time: uint8, or normalised floats."""

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the images after it, given (H, W) before it."""
        return size

    @abstractmethod
    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        """The random numbers of a batch of `count` images, on the CPU: one row per image each."""

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images (B, C, H, W) after it, on their device."""


class Mixer(Augment):
    """An augmentation of pairs: the image in part, and the label as much."""

    stage: ClassVar[int] = PAIRS

    @abstractmethod
    def mix(self, images: Tensor, before: Tensor, chance: Random) -> tuple[Tensor, float]:
        """The mixed images, and the share of their own labels; `before` are the other images."""


def crop_sizes(augment: Iterable[Augment]) -> list[int]:
    """The sides of the images that augmentations crop to, in their order."""
    return [word.crops_to for word in augment if word.crops_to is not None]


# -- where pixels come from ------------------------------------------------------------------------


class PadCrop(Transform):
    """`pad_crop(4)`: pad with 4 zeros on every side, then crop the old size at random."""

    positional: ClassVar[int] = 1
    pixels: Annotated[int, Field(gt=0)]

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        from dcil_dsl.words.tensors.numbers import whole_numbers

        return (whole_numbers(torch.rand(count, 2, generator=chance), 2 * self.pixels + 1),)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        from dcil_dsl.words.tensors.boxes import cut_out
        from dcil_dsl.words.tensors.numbers import sent

        top, left = sent(draws[0], images.device).unbind(1)
        return cut_out(images, top, left, self.pixels)


class Flip(Transform):
    """`flip()`: left to right, with probability p."""

    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        return (torch.rand(count, generator=chance) < self.p,)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        from dcil_dsl.words.tensors.numbers import sent

        flipped = sent(draws[0], images.device)[:, None, None, None]
        return images.flip(-1).where(flipped, images)


class RandomResizedCrop(Transform):
    """`random_resized_crop(224)`: a random box of 8 to 100 % of the area, resized.

    Szegedy et al. 2015, arXiv:1409.4842, section 6.
    """

    positional: ClassVar[int] = 1
    size: Annotated[int, Field(gt=0)]

    @property
    def crops_to(self) -> int | None:
        return self.size

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size, self.size

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        from dcil_dsl.words.tensors.boxes import box_chances, crop_boxes

        return (crop_boxes(box_chances(chance, count), *size),)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        from dcil_dsl.words.tensors.boxes import resize_boxes
        from dcil_dsl.words.tensors.numbers import sent

        return resize_boxes(images, sent(draws[0].float(), images.device), self.size)


# -- operations that are drawn for each image ------------------------------------------------------


class Drawn(Transform):
    """Draws (which, amounts) of `apply_operations`: operations of a table, by their numbers."""

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        from dcil_dsl.words.tensors.operations import apply_operations

        return apply_operations(images, *draws)


class RandAugment(Drawn):
    """`rand_augment(n=2, m=9)`: n random operations an image, at magnitude m of 0..30.

    Cubuk et al. 2020, arXiv:1909.13719, section 3.
    """

    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=0, le=30)] = 9

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        from dcil_dsl.words.tensors.operations import (
            NUM_AUTOMATIC,
            amounts_of,
            magnitudes,
        )

        which = torch.randint(NUM_AUTOMATIC, (count, self.n), generator=chance)
        signs = torch.rand(count, self.n, generator=chance) <= 0.5
        table = magnitudes(*size, wide=False)
        return which, amounts_of(which, torch.full_like(which, self.m), signs, table)


class TrivialAugment(Drawn):
    """`trivial_augment()`: one random operation an image, at a random magnitude, in wide ranges.

    Mueller & Hutter 2021, arXiv:2103.10158, section 3 (TA Wide).
    """

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        from dcil_dsl.words.tensors.operations import (
            BINS,
            NUM_AUTOMATIC,
            amounts_of,
            magnitudes,
        )

        which = torch.randint(NUM_AUTOMATIC, (count, 1), generator=chance)
        bins = torch.randint(BINS, (count, 1), generator=chance)
        signs = torch.rand(count, 1, generator=chance) <= 0.5
        return which, amounts_of(which, bins, signs, magnitudes(*size, wide=True))


class ColorJitter(Drawn):
    """`color_jitter(brightness=0.4)`: random factors of 1 - x .. 1 + x; hue by -x .. x turns.

    In an order of its own for each image. A setting of 0 changes nothing.
    """

    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        from dcil_dsl.words.tensors.operations import (
            BRIGHTNESS,
            CONTRAST,
            HUE,
            SATURATION,
        )

        settings = [self.brightness, self.contrast, self.saturation, self.hue]
        reach = torch.tensor(settings, dtype=torch.float64)
        order = torch.rand(count, 4, generator=chance).argsort(1)
        middle = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        low = torch.where(middle > 0, (middle - reach).clamp(min=0), -reach)
        high = middle + reach
        uniform = torch.rand(count, 4, generator=chance, dtype=torch.float64)
        amounts = low + (high - low) * uniform
        operations = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE]) * (reach > 0)
        return operations[order], amounts.gather(1, order)


# -- normalised images -----------------------------------------------------------------------------


class Erase(Transform):
    """`erase(0.25)`: a random box becomes the mean of the data, with probability p.

    A box of 2 to 33 % of the area. Zhong et al. 2020, arXiv:1708.04896, section 3.2.
    """

    stage: ClassVar[int] = NORMALISED
    positional: ClassVar[int] = 1
    p: Annotated[float, Field(ge=0, le=1)] = 0.5

    def draw(self, chance: torch.Generator, count: int, size: tuple[int, int]) -> Draws:
        import torch

        from dcil_dsl.words.tensors.boxes import box_chances, erase_boxes

        hit = torch.rand(count, 1, generator=chance) < self.p
        return (erase_boxes(box_chances(chance, count), *size) * hit,)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        from dcil_dsl.words.tensors.boxes import clear_boxes
        from dcil_dsl.words.tensors.numbers import sent

        return clear_boxes(images, sent(draws[0], images.device))


# -- pairs -----------------------------------------------------------------------------------------


class MixUp(Mixer):
    """`mixup(0.2)`: x = share * x + (1 - share) * other, the share from Beta(alpha, alpha).

    Zhang et al. 2018, arXiv:1710.09412, section 2.
    """

    word: ClassVar[str] = "mixup"
    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]

    def mix(self, images: Tensor, before: Tensor, chance: Random) -> tuple[Tensor, float]:
        share = chance.betavariate(self.alpha, self.alpha)
        return images * share + before * (1 - share), share


class CutMix(Mixer):
    """`cutmix(1.0)`: a box of another image, its area's share from Beta(alpha, alpha).

    The label's share is the box's part of the area. Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """

    word: ClassVar[str] = "cutmix"
    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(gt=0)]

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
