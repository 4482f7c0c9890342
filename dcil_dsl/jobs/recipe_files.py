"""The recipe files that a command names: files, folders, and `-` for standard input.

In:   the arguments of `dcil check` and `dcil fmt`.
Out:  RecipeFile values, each read once, in the order of the arguments.
Not:  no recipe is parsed. No torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import did_you_mean

STDIN, STDIN_NAME = "-", "<stdin>"
SUFFIX = ".prune"


@dataclass(frozen=True)
class RecipeFile:
    """One recipe to read. path None: standard input, whose `extends` starts here."""

    path: Path | None

    @property
    def name(self) -> str:
        return STDIN_NAME if self.path is None else str(self.path)

    @property
    def folder(self) -> Path:
        return Path() if self.path is None else self.path.parent

    def read(self) -> bytes:
        """Its bytes. InputError, with the nearest file, if it cannot be read."""
        from dcil_dsl.lang.tokens import MOST_BYTES, Unreadable, read_bytes, recipes_in

        if self.path is None:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise InputError(f"{STDIN_NAME} is larger than {MOST_BYTES // 1_000_000} MB")
            return content
        try:
            return read_bytes(self.path)
        except Unreadable as error:
            others = [name for name in recipes_in(self.folder) if name != self.path.name]
            near = did_you_mean(self.path.name, others)
            raise InputError(f"cannot read the recipe {self.path}: {error}", near) from None


def recipe_files(arguments: Sequence[str | Path]) -> list[RecipeFile]:
    """The files that the arguments name, each once.

    A folder stands for every .prune file in it and below, hidden folders left out, and
    `dcil:methods/gmp` for a recipe that comes with dcil. InputError for a folder without one.
    """
    from dcil_dsl.lang.shipped import path_of

    found: dict[Path | None, RecipeFile] = {}
    for argument in arguments:
        if str(argument) == STDIN:
            found.setdefault(None, RecipeFile(None))
            continue
        path = path_of(argument)
        paths = [path]
        if path.is_dir():
            paths = sorted(_below(path))
            if not paths:
                raise InputError(f"the folder {path} holds no {SUFFIX} file")
        for one in paths:
            found.setdefault(one.absolute(), RecipeFile(one))
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    """The recipes in a folder; links to folders are not followed."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _below(entry)
        elif entry.suffix == SUFFIX:
            yield entry
