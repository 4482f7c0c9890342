"""Images that could not be read while others stood in for them.

In:   what a Loader says of each.
Out:  a note, and a line of a file, once for each image.
Not:  nothing is read or replaced here (reading.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dcil_dsl.diagnostics import InputError


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
            lines = "".join(f"{fact}\n" for fact in facts)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            try:  # in a run folder from elsewhere it may be a link, to what is not ours to change
                descriptor = os.open(self.file, flags | os.O_NOFOLLOW, 0o666)
                with open(descriptor, "a", encoding="utf-8") as file:
                    file.write(lines)
            except OSError as error:
                raise InputError(f"cannot write {self.file}: {error.strerror}") from error
