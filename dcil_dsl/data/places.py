"""Where the files of a data set lie, and what to report where they are missing.

In:   the name of a data set, and the folder of `--data`, if any.
Out:  the folder that holds the files, or an InputError that lists every folder searched.
Not:  no torch, so that missing data are reported at once; nothing is opened or created.
"""

from __future__ import annotations

import os
from pathlib import Path

from dcil_dsl.data.datasets import DatasetRecord, record_of
from dcil_dsl.diagnostics import InputError

SYSTEM = Path("/usr/share/datasets")


def look(name: str, directory: str | Path | None) -> None:
    """Raise InputError for an unknown name, for missing files, and for a folder that the data set
    does not read.

    Callers use it before they load torch; open_dataset looks again.
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
    raise InputError(f"the data of {record.name} are not there", "\n".join(lines))


def _places(record: DatasetRecord, directory: str | Path | None) -> list[Path]:
    """The given folder stands alone: to search further would hide a mistake in it."""
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
