"""Images that could not be read while others stood in for them.

In:   what a Loader says of each.
Out:  a note, and a line of a file, once for each image.
Not:  nothing is read or replaced here (reading.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class BadImages:
    """The on_bad_image of a run's loaders, which share it.

    Before there is a file to keep the lines in, they are held. Several processes may write in it.
    """

    def __init__(self, note: Callable[[str], None]):
        self.note = note
        self.seen: dict[str, None] = {}
        self.file: Path | None = None

    def __call__(self, fact: str) -> None:
        if fact in self.seen:
            return
        self.seen[fact] = None
        self.note(f"{fact}; another image stands in for it")
        self._write([fact])

    def keep_in(self, file: Path) -> None:
        self.file = file
        self._write(list(self.seen))

    def _write(self, facts: list[str]) -> None:
        if self.file is not None and facts:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write("".join(f"{fact}\n" for fact in facts))
