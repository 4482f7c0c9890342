"""Where data lie, and what to say where they do not.

In:   the name of a data set, and the folder of `--data`, if any.
Out:  the places to look in; the one that holds the data, or an InputError that tells them all.
Not:  no torch, so that missing data are told at once; nothing is opened or created.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.words.blocks import DATA_SETS

NO_FILES = ("digits", "synthetic")  # scikit-learn brings the one, a generator makes the other
IMAGE_FOLDERS = ("imagenet", "imagefolder")
LAYOUT = "train/<class>/*.JPEG and val/<class>/*.JPEG, the same class folders in both"
SHARDS = "train-*.tar and val-*.tar, in which KEY.jpg and KEY.cls make an example"


def known_name(name: str) -> str:
    """One of DATA_SETS, `fashion_mnist` as a recipe spells it being fashion-mnist; InputError."""
    name = name.replace("_", "-")
    if name not in DATA_SETS:
        near = nearest(name, DATA_SETS)
        hint = f"did you mean `{near}`?" if near else f"there are {', '.join(DATA_SETS)}"
        raise InputError(f"there is no data set called `{name}`", hint)
    return name


def look(name: str, directory: str | Path | None) -> None:
    """Raise InputError where a name is unknown, a folder of images is not there, or a folder is
    given that nothing would be read from.

    Without torch, for whoever wants to know before it is loaded; open_dataset looks again.
    """
    name = known_name(name)
    if directory is not None and name in NO_FILES:
        raise InputError(f"the data of {name} need no folder", f"leave {directory} out")
    try:
        if name in IMAGE_FOLDERS:
            find(name, places_of(name, directory), is_image_folder, LAYOUT)
        elif name == "webdataset":
            find(name, places_of(name, directory), is_shard_folder, SHARDS)
    except OSError as error:
        raise InputError(f"cannot read the data of {name}: {error}") from error


def places_of(name: str, directory: str | Path | None, system: Path | None = None) -> list[Path]:
    """What is given stands alone: to look further would hide a mistake in it.

    system  where the operating system's own package puts the data
    """
    if directory is not None:
        return [Path(directory).expanduser()]
    if os.environ.get("DCIL_DATA"):
        return [Path(os.environ["DCIL_DATA"]).expanduser() / name]
    # Not Path.home(), which fails for a user without a home, as containers have them.
    cache = Path(os.path.expanduser("~")) / ".cache" / "dcil" / name
    return [cache] if system is None else [cache, system]


def find(
    name: str, places: list[Path], holds: Callable[[Path], bool], layout: str, get: str = ""
) -> Path:
    """The first place that holds the data; raises InputError that tells every place."""
    for place in places:
        if holds(place):
            return place
    looked = [f"looked in  {place}{_state(place)}" for place in places]
    point = f"point at it with --data DIR, or with DCIL_DATA=DIR where it lies in DIR/{name}"
    lines = [*looked, f"expected   {layout}", *([f"get it     {get}"] if get else []), point]
    raise InputError(f"the data of {name} are not there", "\n".join(lines))


def is_image_folder(directory: Path) -> bool:
    """Whether `directory` holds a train and a val folder; what is in them is checked later."""
    return all((directory / part).is_dir() for part in ("train", "val"))


def is_shard_folder(directory: Path) -> bool:
    """Whether `directory` holds shards of both parts; what is in them is checked later."""
    return all(shards_of(directory, part) for part in ("train", "val"))


def shards_of(directory: Path, part: str) -> list[Path]:
    return sorted(directory.glob(f"{part}-*.tar")) if directory.is_dir() else []


def _state(place: Path) -> str:
    if not place.exists():
        return " (does not exist)"
    if not place.is_dir():
        return " (is not a folder)"
    entries = sorted(entry.name for entry in place.iterdir())
    more = ", ..." if len(entries) > 4 else ""
    return f" (holds {', '.join(entries[:4])}{more})" if entries else " (is empty)"
