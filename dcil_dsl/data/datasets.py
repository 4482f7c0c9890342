"""The data sets that have a name, one record each: `DATASETS`; and where their files are.

In:   the name of a data set, as a recipe or `--train` gives it, and the folder of `--data`.
Out:  its record: task, size, shapes, opener; the folder that holds its files, or an InputError that
      lists every folder searched.
Not:  no torch, so that a missing folder is reported at once; a record's opener is imported when it
      is called.

To add a data set, write a function that opens it and add its record to the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest

if TYPE_CHECKING:
    from dcil_dsl.data.dataset import Dataset

LAYOUT = "train/<class>/*.JPEG and val/<class>/*.JPEG, the same class folders in both"
SHARDS = "train-*.tar and val-*.tar, in which KEY.jpg and KEY.cls make an example"
TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
TEXTS = (
    f"train and val, each one file of {', '.join(TEXT_SUFFIXES)}, and tokenizer/ as transformers "
    "saves it"
)
IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
SYSTEM = Path("/usr/share/datasets")
IDX_FOLDERS = ("", "raw", "FashionMNIST/raw")  # the files alone, and torchvision's layouts


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    layout  a description of the folder, for messages
    holds   whether a folder has the files; their contents are checked when they are opened
    get     the command that downloads them into a folder, if there is one
    system  the folder in /usr/share/datasets where a Debian package installs them
    """

    layout: str
    holds: Callable[[Path], bool]
    get: Callable[[Path], str] = lambda place: ""
    system: str | None = None


@dataclass(frozen=True)
class DatasetRecord:
    """One data set.

    opens      "module:function", called with the folder (None: it needs none), the number of
               channels where it has images, and its options
    task       a name of TASKS
    num_train  training examples, and image_size the side of an image; None: it depends on the
               folder. A plan needs them where the data are on another machine
    channels   the numbers of channels to open its images with; empty: it has no images
    options    parameters that open_dataset passes on
    """

    name: str
    opens: str
    task: str = "image-classification"
    num_train: int | None = None
    image_size: int | None = None
    channels: tuple[int, ...] = (1, 3)
    files: Files | None = None
    options: tuple[str, ...] = ()

    def open(self, folder: Path | None, channels: int, options: Mapping[str, int]) -> Dataset:
        module, _, name = self.opens.partition(":")
        opened: Dataset = getattr(import_module(module), name)(folder, channels, **options)
        return opened


def is_image_folder(place: Path) -> bool:
    return all((place / part).is_dir() for part in ("train", "val"))


def is_shard_folder(place: Path) -> bool:
    return all(shards_of(place, part) for part in ("train", "val"))


def shards_of(place: Path, part: str) -> list[Path]:
    return sorted(place.glob(f"{part}-*.tar")) if place.is_dir() else []


def is_text_folder(place: Path) -> bool:
    return (
        all(texts_of(place, part) for part in ("train", "val")) and (place / "tokenizer").is_dir()
    )


def texts_of(place: Path, part: str) -> list[Path]:
    files = (place / f"{part}{suffix}" for suffix in TEXT_SUFFIXES)
    return [file for file in files if file.is_file()]


def idx_folder(place: Path) -> Path | None:
    """The folder of the four idx files, in one of the layouts."""
    folders = (place / inner for inner in IDX_FOLDERS)
    return next((f for f in folders if all(idx_file(f, name) for name in IDX_FILES)), None)


def idx_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)


def _download(reader: str, place: Path) -> str:
    call = f"t.datasets.{reader}('{place}', download=True)"
    return f'python -c "import torchvision as t; {call}"'


def _cifar(base: str, archive: str, reader: str) -> Files:
    """The folder itself, or its parent."""

    def get(place: Path) -> str:
        if (place / archive).is_file():
            return f"tar -C {place} -xf {place / archive}"
        return (
            f"python -c \"import torchvision as t; t.datasets.{reader}('{place}', download=True)\""
        )

    return Files(
        f"{base}/ as unpacked from {archive}",
        lambda place: (place / base).is_dir() or (place.name == base and place.is_dir()),
        get,
    )


DATASETS: Mapping[str, DatasetRecord] = MappingProxyType(
    {
        record.name: record
        for record in (
            DatasetRecord("digits", "dcil_dsl.data.sources:digits", num_train=1437, image_size=8),
            DatasetRecord(
                "fashion-mnist",
                "dcil_dsl.data.sources:fashion_mnist",
                num_train=60_000,
                image_size=28,
                files=Files(
                    f"{', '.join(IDX_FILES)}, each plain or .gz",
                    lambda place: idx_folder(place) is not None,
                    lambda place: (
                        f"apt install dataset-fashion-mnist, or {_download('FashionMNIST', place)}"
                    ),
                    system="fashion-mnist",
                ),
            ),
            DatasetRecord(
                "cifar10",
                "dcil_dsl.data.sources:cifar10",
                num_train=50_000,
                image_size=32,
                files=_cifar("cifar-10-batches-py", "cifar-10-python.tar.gz", "CIFAR10"),
            ),
            DatasetRecord(
                "cifar100",
                "dcil_dsl.data.sources:cifar100",
                num_train=50_000,
                image_size=32,
                files=_cifar("cifar-100-python", "cifar-100-python.tar.gz", "CIFAR100"),
            ),
            DatasetRecord(
                "imagenet",
                "dcil_dsl.data.folders:open_imagenet",
                num_train=1_281_167,
                image_size=224,
                files=Files(LAYOUT, is_image_folder),
            ),
            DatasetRecord(
                "imagefolder",
                "dcil_dsl.data.folders:open_images",
                files=Files(LAYOUT, is_image_folder),
            ),
            DatasetRecord(
                "webdataset",
                "dcil_dsl.data.webdataset:open_shards",
                files=Files(SHARDS, is_shard_folder),
            ),
            DatasetRecord(
                "text-classification",
                "dcil_dsl.data.text:text_classification",
                task="classification",
                files=Files(TEXTS, is_text_folder),
                options=("length",),
            ),
            DatasetRecord(
                "language-modelling",
                "dcil_dsl.data.text:language_modelling",
                task="language-modelling",
                files=Files(TEXTS, is_text_folder),
                options=("length",),
            ),
            DatasetRecord(
                "diabetes",
                "dcil_dsl.data.sets.tables:diabetes",
                task="regression",
                num_train=353,
                channels=(),
            ),
            DatasetRecord(
                "breast-cancer",
                "dcil_dsl.data.sets.tables:breast_cancer",
                task="classification",
                num_train=455,
                channels=(),
            ),
            DatasetRecord(
                "wine",
                "dcil_dsl.data.sets.tables:wine",
                task="classification",
                num_train=142,
                channels=(),
            ),
            DatasetRecord(
                "digits-table",
                "dcil_dsl.data.sets.tables:digits_table",
                task="classification",
                num_train=1437,
                channels=(),
            ),
            DatasetRecord(
                "digits-labels",
                "dcil_dsl.data.sets.scenes:digits_labels",
                task="multi-label",
                num_train=4000,
                channels=(),
            ),
            DatasetRecord(
                "digits-masks",
                "dcil_dsl.data.sets.scenes:digits_masks",
                task="segmentation",
                num_train=1000,
                channels=(),
            ),
            DatasetRecord(
                "digits-boxes",
                "dcil_dsl.data.sets.scenes:digits_boxes",
                task="detection",
                num_train=1000,
                channels=(),
            ),
            DatasetRecord(
                "poisson",
                "dcil_dsl.data.sets.poisson:poisson",
                task="physics",
                num_train=2560,
                channels=(),
            ),
            DatasetRecord(
                "synthetic",
                "dcil_dsl.data.sources:synthetic",
                num_train=512,
                image_size=32,
                options=("num_train", "num_val", "num_classes", "image_size", "seed"),
            ),
        )
    }
)


def known_record(name: str | None) -> DatasetRecord | None:
    """The record of a name; a recipe spells fashion-mnist `fashion_mnist`."""
    return DATASETS.get((name or "").replace("_", "-"))


def record_of(name: str) -> DatasetRecord:
    """The same. InputError where there is none."""
    record = known_record(name)
    if record is None:
        near = nearest(name.replace("_", "-"), list(DATASETS))
        hint = f"did you mean `{near}`?" if near else f"there are {', '.join(DATASETS)}"
        raise InputError(f"there is no data set called `{name.replace('_', '-')}`", hint)
    return record


def require_data(name: str, directory: str | Path | None) -> None:
    """Raise InputError for an unknown name, for missing files, and for a folder that the data set
    does not read.

    Callers use it before they load torch; open_dataset checks again.
    """
    if ":" in name:  # a callable, which is imported when it is called
        return
    record = record_of(name)
    if directory is not None and record.files is None:
        raise InputError(f"the data of {record.name} need no folder", f"leave {directory} out")
    find(record, directory)


def find(record: DatasetRecord, directory: str | Path | None) -> Path | None:
    """The first folder that holds the files; None where the data set has none."""
    if record.files is None:
        return None
    places = _places(record, directory)
    try:
        for place in places:
            if record.files.holds(place):
                return place
        looked = [f"looked in  {place}{_state(place)}" for place in places]
    except OSError as error:  # no permission, a broken disk
        raise InputError(f"cannot read the data of {record.name}: {error}") from error
    get = record.files.get(places[0])
    lines = [*looked, f"expected   {record.files.layout}", *([f"get it     {get}"] if get else [])]
    lines.append(
        f"point at it with --data DIR, or with DCIL_DATA=DIR where it lies in DIR/{record.name}"
    )
    raise InputError(f"the data of {record.name} are missing", "\n".join(lines))


def _places(record: DatasetRecord, directory: str | Path | None) -> list[Path]:
    """Only the given folder: searching further would hide a mistake in it."""
    if directory is not None:
        return [Path(directory).expanduser()]
    if os.environ.get("DCIL_DATA"):
        return [Path(os.environ["DCIL_DATA"]).expanduser() / record.name]
    # Not Path.home(), which fails for a user without a home, as containers have them.
    cache = Path(os.path.expanduser("~")) / ".cache" / "dcil" / record.name
    system = record.files.system if record.files else None
    return [cache] if system is None else [cache, SYSTEM / system]


def _state(place: Path) -> str:
    if not place.exists():
        return " (does not exist)"
    if not place.is_dir():
        return " (is not a folder)"
    entries = sorted(entry.name for entry in place.iterdir())
    more = ", ..." if len(entries) > 4 else ""
    return f" (holds {', '.join(entries[:4])}{more})" if entries else " (is empty)"
