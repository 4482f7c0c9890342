"""Data sets opened: by a name of DATASETS, or made by the user's callable.

In:   a name, or "my.py:make", "package.module:callable"; the folder of `--data`, if any.
Out:  a Dataset, its task named.
Not:  nothing is downloaded or written. datasets.py knows where files are. No code runs that the
      user has not named on this command line.
"""

from __future__ import annotations

import gzip
import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcil_dsl.data.dataset import Dataset, Tensors, in_memory
from dcil_dsl.data.datasets import IDX_FILES, find, idx_file, idx_folder, record_of
from dcil_dsl.data.examples import source_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library
from dcil_dsl.tasks.task import described
from dcil_dsl.zoo.spec import call_in_words, user_callable

if TYPE_CHECKING:
    from torchvision import datasets
else:
    datasets = library("torchvision.datasets")
of_sklearn, split = library("sklearn.datasets"), library("sklearn.model_selection")


def open_dataset(
    name: str, directory: str | Path | None = None, *, channels: int = 3, **options: int
) -> Dataset:
    """Open one of DATASETS; a recipe spells fashion-mnist `fashion_mnist`.

    directory  the folder of its files; default: $DCIL_DATA/<name>, then ~/.cache/dcil/<name>
    channels   1 or 3: grey is repeated, colour is made grey
    options    the parameters of `synthetic`
    Raises InputError.
    """
    record = record_of(name)
    if record.channels and channels not in record.channels:
        raise InputError(
            f"the images of {record.name} have 1 or 3 channels, not {channels}",
            help="`channels` in the recipe's `data` block",
        )
    if foreign := options.keys() - set(record.options):
        raise InputError(f"{record.name} takes no option {', '.join(sorted(foreign))}")
    folder = find(record, directory)
    try:
        return record.open(folder, channels, options)
    except OSError as error:  # no permission, a broken disk
        raise InputError(f"cannot read the data of {record.name}: {error}") from error


# -- digits: in scikit-learn itself --------------------------------------------------------------


def digits(folder: None, channels: int) -> Dataset:
    """1,797 handwritten digits of 8 x 8; 360 of them, in equal shares of classes, held out.

    Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
    """
    loaded = of_sklearn.load_digits()
    images = torch.from_numpy(loaded.images)[:, None]  # 0..16
    images = (images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(loaded.target).long()
    indices = split.train_test_split(
        range(len(images)), test_size=360, stratify=loaded.target, random_state=0
    )
    train, val = (Tensors(images[part], labels[part]) for part in map(torch.tensor, indices))
    return in_memory("digits", train, val, [str(digit) for digit in range(10)], channels)


# -- fashion-mnist: four idx files ---------------------------------------------------------------

FASHION_STATISTICS = ((0.2860,), (0.3530,))


def fashion_mnist(place: Path, channels: int) -> Dataset:
    """70,000 grey images of 28 x 28 in ten classes. Xiao et al. 2017, arXiv:1708.07747."""
    train, val = (_idx_part(place, *IDX_FILES[at : at + 2]) for at in (0, 2))
    classes = datasets.FashionMNIST.classes
    return in_memory("fashion-mnist", train, val, classes, channels, *FASHION_STATISTICS)


def _idx_part(place: Path, images_name: str, labels_name: str) -> Tensors:
    folder = idx_folder(place) or place
    images_file, labels_file = (
        idx_file(folder, name) or folder / name for name in (images_name, labels_name)
    )
    images = _read_idx(images_file, datasets.mnist.read_image_file)[:, None]
    labels = _read_idx(labels_file, datasets.mnist.read_label_file)
    if len(images) != len(labels) or not len(images):
        counts = f"{count(len(images), 'image')} and {count(len(labels), 'label')}"
        raise InputError(f"{images_file} and {labels_file} do not belong together: {counts}")
    if labels.max() > 9:
        raise InputError(f"{labels_file} holds the label {int(labels.max())}, the last class is 9")
    return Tensors(images, labels)


def _read_idx(file: Path, read: Callable[[str], Tensor]) -> Tensor:
    """Read with torchvision, which cannot read .gz: such a file is unpacked to a temporary one."""
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


def cifar10(place: Path, channels: int) -> Dataset:
    """60,000 images of 32 x 32 in ten classes. Krizhevsky 2009."""
    return _cifar(place, channels, "cifar10", datasets.CIFAR10, CIFAR10_STATISTICS)


def cifar100(place: Path, channels: int) -> Dataset:
    """60,000 images of 32 x 32 in a hundred classes. Krizhevsky 2009."""
    return _cifar(place, channels, "cifar100", datasets.CIFAR100, CIFAR100_STATISTICS)


def _cifar(
    place: Path,
    channels: int,
    name: str,
    reader: type[datasets.CIFAR10],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Dataset:
    """place: the folder of the files, or its parent."""
    base = reader.base_folder
    root = place.parent if place.name == base else place
    try:
        # torchvision compares every file's MD5 before it opens one.
        parts = [reader(root, train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        files = record_of(name).files
        raise InputError(
            f"{root / base} is incomplete or damaged",
            f"get it anew: {files.get(root)}" if files else None,
        ) from error
    train, val = (
        Tensors(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
        for part in parts
    )
    return in_memory(name, train, val, parts[0].classes, channels, *statistics)


# -- synthetic -----------------------------------------------------------------------------------


def synthetic(
    folder: None = None,
    channels: int = 3,
    *,
    num_train: int = 512,
    num_val: int = 128,
    num_classes: int = 10,
    image_size: int = 32,
    seed: int = 0,
) -> Dataset:
    """Random images that a network can classify: a smooth pattern for each class, under noise.

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


RETURNS = "return (train, held_out), or dcil_dsl.data.Dataset(name, train, held_out, task=...)"


def is_callable_spec(data: str) -> bool:
    """Whether this names a callable rather than a data set of the table."""
    return ":" in data


def open_callable(spec: str, directory: str | Path | None) -> Dataset:
    """Call it, with --data as its argument `directory` if it has one.

    InputError with file and line for what its code raises.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise InputError(
            f"`{spec}` is not a data spec", help="my.py:make, or package.module:callable"
        )
    make = user_callable(source, name, spec)
    try:
        takes_directory = "directory" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some builtins have none
        takes_directory = False
    if directory is not None and not takes_directory:
        raise InputError(
            f"`{spec}` takes no folder", help="give it a parameter `directory`, or leave --data out"
        )
    given = {"directory": None if directory is None else Path(directory)}
    return dataset_of(call_in_words(make, given if takes_directory else {}, spec), spec)


def dataset_of(given: Any, name: str) -> Dataset:
    """A Dataset unchanged; a pair as a Dataset called `name`, its task from the first example."""
    if isinstance(given, Dataset):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InputError(f"`{name}` returned {described(given)}", help=RETURNS)
    train, val = given
    return Dataset(name, train, val, task=_task_of(name, train))


def _task_of(name: str, train: Any) -> str:
    """The task: real targets mean regression, whole numbers classification.

    A dictionary, or not two parts, means the arguments of a model with its own loss.
    """
    source = source_of(name, "train", train)
    if not len(source.examples):
        raise InputError(f"the train part of {name} holds no example")
    try:
        batch = source.collate([source.examples[0]])
    except Exception as error:  # of the user's own code: of any type
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot make a batch of the first example of {name}: {type(error).__name__}: {text}",
            help=RETURNS,
        ) from error
    if isinstance(batch, Mapping) or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return "own-loss"
    targets = batch[1]
    if isinstance(targets, Tensor) and targets.is_floating_point():
        return "regression"
    if isinstance(targets, Tensor) and targets.dim() == 1 and targets.dtype != torch.bool:
        return "classification"
    return "own-loss"
