"""Images in folders, train/<class>/*.JPEG and val/<class>/*.JPEG: imagenet and imagefolder.

In:   the folder that holds train and val.
Out:  a Dataset whose items are (PIL image, class index), read when accessed.
Not:  images are not opened here; one that cannot be read is reported when it is read.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy

from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.datasets import LAYOUT
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library

if TYPE_CHECKING:
    from PIL import Image
    from torchvision import datasets
else:
    Image, datasets = library("PIL.Image"), library("torchvision.datasets")

# The usual constants of ImageNet-1k; for one channel, the mean of the three.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = {1: "L", 3: "RGB"}
# Those of IMG_EXTENSIONS. Pillow knows more by their content, and one, EPS, runs a program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
# Of the sides. Resized until its short side is 224, a line of pixels would fill the memory.
MAX_RATIO = 1000


class BadImage(InputError):
    """An image that cannot be read."""


def open_imagenet(directory: Path, channels: int) -> Dataset:
    """ImageNet-1k in its class folders. Russakovsky et al. 2015, arXiv:1409.0575."""
    return open_image_folder("imagenet", directory, channels)


def open_images(directory: Path, channels: int) -> Dataset:
    """Any folder of that layout."""
    return open_image_folder("imagefolder", directory, channels)


def open_image_folder(name: str, directory: Path, channels: int) -> Dataset:
    """Both parts of `directory`; raises InputError for class folders that differ or are empty."""
    train, val = (_class_folders(directory / part) for part in ("train", "val"))
    if train != val:
        lines = [
            f"only in {part}: {_some(sorted(here - there))}"
            for part, here, there in (("train", train, val), ("val", val, train))
            if here - there
        ]
        raise InputError(f"train and val of {directory} differ in their classes", "\n".join(lines))
    training, held_out = (_open_part(directory / part, channels) for part in ("train", "val"))
    mean, std = statistics_of(channels)
    return Dataset(name, training, held_out, tuple(training.classes), mean, std)


def statistics_of(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of photographs, on the scale 0..1."""
    return (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))


def read_image(file: str | BinaryIO, mode: str, name: str | None = None) -> Image.Image:
    """The PIL image in `mode` ("RGB", "L"). BadImage, which has `name` or the path."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if max(image.size) > MAX_RATIO * min(image.size):
                sides = " x ".join(map(str, image.size))
                raise ValueError(f"{sides} pixels are not a photograph")
            return _of_bytes(image).convert(mode)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        fact = " ".join(str(error).split())
        raise BadImage(
            f"cannot read the image {_shown(str(name or file))}: {type(error).__name__}: {fact}",
            "replace or remove the file, and resume with --resume-anyway, because the data "
            "have changed then; or continue without it: --resume --on-bad-image skip",
        ) from error


def _of_bytes(image: Image.Image) -> Image.Image:
    """The upper 8 of the 16 bits of each pixel; Pillow would make everything above 255 white.

    ValueError for pixels of 32 bits, whose files do not say which value is white.
    """
    is_wide = image.mode == "I" and image.format in ("PNG", "PPM")  # that hold no more than 16
    if is_wide or image.mode.startswith("I;16"):
        return Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits")
    return image


def _shown(name: str) -> str:
    """The name on one line, escaped: a file name may hold terminal commands and any bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _class_folders(part: Path) -> set[str]:
    folders = {entry.name for entry in part.iterdir() if entry.is_dir()}
    if folders:
        return folders
    flat = any(entry.suffix.lower() in datasets.folder.IMG_EXTENSIONS for entry in part.iterdir())
    fact = "images, but no class folders" if flat else "no class folders"
    raise InputError(f"{part} holds {fact}", f"expected: {LAYOUT}")


def _open_part(part: Path, channels: int) -> datasets.ImageFolder:
    folder = datasets.ImageFolder(
        part, loader=partial(read_image, mode=MODES[channels]), allow_empty=True
    )
    counts = Counter(folder.targets)
    empty = [name for name, index in folder.class_to_idx.items() if not counts[index]]
    if empty:
        raise InputError(
            f"{len(empty)} of the {count(len(folder.classes), 'class folder')} of {part} "
            f"{'holds' if len(empty) == 1 else 'hold'} no image",
            f"{_some(empty)}\nimages end in {', '.join(datasets.folder.IMG_EXTENSIONS)}, "
            "in either case",
        )
    return folder


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
