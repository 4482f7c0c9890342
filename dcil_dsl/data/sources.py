"""Data sets by name.

In:   the name that the recipe or `--train` gives, and the folder of `--data`, if any.
Out:  a Dataset.
Not:  nothing is downloaded, and nothing written but an index of shards in the cache. Data that
      are missing are an InputError that says where they were looked for, in which layout, and how
      to point at them.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from dcil_dsl.data.dataset import Dataset, Tensors, in_memory
from dcil_dsl.data.folders import open_image_folder
from dcil_dsl.data.places import (
    LAYOUT,
    SHARDS,
    find,
    is_image_folder,
    is_shard_folder,
    known_name,
    places_of,
)
from dcil_dsl.data.shards import open_shards
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count


def open_dataset(
    name: str, directory: Path | None = None, *, channels: int = 3, **options: int
) -> Dataset:
    """Open one of DATA_SETS (`fashion_mnist`, as a recipe spells it, is fashion-mnist).

    directory  where it lies; else $DCIL_DATA/<name>, else ~/.cache/dcil/<name>
    channels   1 or 3: grey is repeated, colour is made grey
    options    the parameters of `synthetic`, for that set alone
    Raises InputError.
    """
    name = known_name(name)
    if channels not in (1, 3):
        raise InputError(
            f"the images of {name} have 1 or 3 channels, not {channels}",
            help="`channels` in the recipe's `data` block",
        )
    if options and name != "synthetic":
        raise InputError(f"{name} takes no option {', '.join(options)}")
    system = DEBIAN_FOLDER if name == "fashion-mnist" else None
    places = places_of(name, directory, system)
    try:
        return _open(name, places, channels, options)
    except OSError as error:  # no permission, a broken disk
        raise InputError(f"cannot read the data of {name}: {error}") from error


def _open(name: str, places: list[Path], channels: int, options: dict[str, int]) -> Dataset:
    match name:
        case "digits":
            return _digits(channels)
        case "synthetic":
            return synthetic(channels=channels, **options)
        case "fashion-mnist":
            return _fashion_mnist(places, channels)
        case "cifar10":
            return _cifar(places, channels, name, datasets.CIFAR10, CIFAR10_STATISTICS)
        case "cifar100":
            return _cifar(places, channels, name, datasets.CIFAR100, CIFAR100_STATISTICS)
        case "webdataset":
            return open_shards(find(name, places, is_shard_folder, SHARDS), channels)
    found = find(name, places, is_image_folder, LAYOUT)
    return open_image_folder(name, found, channels)


# -- digits: in scikit-learn itself --------------------------------------------------------------


def _digits(channels: int) -> Dataset:
    """1,797 handwritten digits of 8 x 8; 360 of them, in equal shares of classes, held out.

    Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images)[:, None]  # 0..16
    images = (images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    indices = train_test_split(
        range(len(images)), test_size=360, stratify=digits.target, random_state=0
    )
    train, val = (Tensors(images[part], labels[part]) for part in map(torch.tensor, indices))
    return in_memory("digits", train, val, [str(digit) for digit in range(10)], channels)


# -- fashion-mnist: four idx files ---------------------------------------------------------------

IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
IDX_FOLDERS = ("", "raw", "FashionMNIST/raw")  # the files alone, and torchvision's layouts
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION_STATISTICS = ((0.2860,), (0.3530,))


def _fashion_mnist(places: list[Path], channels: int) -> Dataset:
    """70,000 grey images of 28 x 28 in ten classes. Xiao et al. 2017, arXiv:1708.07747."""
    layout = f"{', '.join(IDX_FILES)}, each plain or .gz"
    get = (
        "apt install dataset-fashion-mnist, or python -c "
        f"\"import torchvision as t; t.datasets.FashionMNIST('{places[0]}', download=True)\""
    )

    place = find("fashion-mnist", places, lambda p: _idx_folder(p) is not None, layout, get)
    folder = _idx_folder(place)
    train, val = (_idx_part(folder, *IDX_FILES[at : at + 2]) for at in (0, 2))
    classes = datasets.FashionMNIST.classes
    return in_memory("fashion-mnist", train, val, classes, channels, *FASHION_STATISTICS)


def _idx_folder(place: Path) -> Path | None:
    folders = (place / inner for inner in IDX_FOLDERS)
    return next((f for f in folders if all(_idx_file(f, name) for name in IDX_FILES)), None)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)


def _idx_part(folder: Path, images_name: str, labels_name: str) -> Tensors:
    images_file, labels_file = (_idx_file(folder, name) for name in (images_name, labels_name))
    images = _read_idx(images_file, read_image_file)[:, None]
    labels = _read_idx(labels_file, read_label_file)
    if len(images) != len(labels) or not len(images):
        counts = f"{count(len(images), 'image')} and {count(len(labels), 'label')}"
        raise InputError(f"{images_file} and {labels_file} do not belong together: {counts}")
    if labels.max() > 9:
        raise InputError(f"{labels_file} holds the label {int(labels.max())}, the last class is 9")
    return Tensors(images, labels)


def _read_idx(file: Path, read: Callable[[str], Tensor]) -> Tensor:
    """torchvision's own reader, which does not know .gz: such a file is unpacked aside."""
    try:
        if file.suffix != ".gz":
            return read(str(file))
        with gzip.open(file) as packed, tempfile.NamedTemporaryFile(suffix=".idx") as plain:
            plain.write(packed.read())
            plain.flush()
            return read(plain.name)
    except Exception as error:  # asserts, shapes, zlib, the end of the file
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error


# -- CIFAR ---------------------------------------------------------------------------------------

# CIFAR-10's are those of the authors' script (Jangho-Kim/DCIL-pytorch), rounded as there.
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _cifar(
    places: list[Path],
    channels: int,
    name: str,
    reader: type[datasets.CIFAR10],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Dataset:
    """60,000 images of 32 x 32. Krizhevsky 2009. The folder itself may be given, or its parent."""
    base = reader.base_folder
    roots = [place.parent if place.name == base else place for place in places]
    layout = f"{base}/ as unpacked from {reader.filename}"
    get = (
        f'python -c "import torchvision as t; t.datasets.{reader.__name__}'
        f"('{roots[0]}', download=True)\""
    )
    if (roots[0] / reader.filename).is_file():
        get = f"tar -C {roots[0]} -xf {roots[0] / reader.filename}"
    root = find(name, roots, lambda place: (place / base).is_dir(), layout, get)
    try:
        # torchvision compares every file's MD5 before it opens one.
        parts = [reader(root, train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        fact = f"{root / base} is incomplete or damaged"
        raise InputError(fact, f"get it anew: {get}") from error
    train, val = (
        Tensors(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
        for part in parts
    )
    return in_memory(name, train, val, parts[0].classes, channels, *statistics)


# -- synthetic -----------------------------------------------------------------------------------


def synthetic(
    num_train: int = 512,
    num_val: int = 128,
    num_classes: int = 10,
    image_size: int = 32,
    channels: int = 3,
    seed: int = 0,
) -> Dataset:
    """Random images that can be told apart: a smooth pattern for each class, under noise.

    The same numbers for the same arguments. Both parts have the same patterns.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_classes, channels, 4, 4, generator=generator)
    size = (image_size, image_size)
    patterns = torch.nn.functional.interpolate(coarse, size, mode="bilinear")

    def draw(count: int) -> Tensors:
        labels = torch.arange(count) % num_classes
        images = torch.empty((count, channels, *size), dtype=torch.uint8)
        for index, label in enumerate(labels):  # one at a time: no copy of all in floating point
            noise = torch.rand((channels, *size), generator=generator)
            images[index] = (0.5 * patterns[label] + 0.5 * noise).mul(255).to(torch.uint8)
        return Tensors(images, labels)

    classes = [f"class{index}" for index in range(num_classes)]
    return in_memory("synthetic", draw(num_train), draw(num_val), classes, channels)
