"""Rewrite recipe files in the canonical form, in place.

In:   RecipeFile values (recipe_files.py).
Out:  the names of those that are not canonical; the files rewritten, each atomically; the
      canonical text of standard input.
Not:  no layout (lang/fmt.py). If one file does not parse, none is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.jobs.recipe_files import RecipeFile


@dataclass(frozen=True)
class Formatted:
    """changed: the files that are not canonical. piped: the text of standard input, if named."""

    changed: tuple[RecipeFile, ...]
    piped: str | None = None


def format_files(files: Sequence[RecipeFile], write: bool) -> Formatted:
    """Which texts are not canonical; the files among them rewritten if `write`.

    Raises RecipeError with the errors of all files, and InputError for an unreadable one.
    """
    from dcil_dsl.lang.fmt import format_text
    from dcil_dsl.lang.tokens import decode

    texts: dict[RecipeFile, tuple[bytes, bytes]] = {}
    wrong = []
    for file in files:
        # Bytes are compared: a file with \r\n or a byte order mark is not canonical.
        given = file.read()
        try:
            text = format_text(decode(given, file.name), file.name)
        except RecipeError as error:
            wrong += error.diagnostics
        else:
            texts[file] = (given, text.encode())
    if wrong:
        raise RecipeError(wrong)
    changed = tuple(file for file, (given, canonical) in texts.items() if given != canonical)
    piped = next((pair[1].decode() for file, pair in texts.items() if file.path is None), None)
    if write:
        for file in changed:
            if file.path is not None:
                _write(file.path, texts[file][1])
    return Formatted(changed, piped)


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically; a link stays a link, and the permissions stay."""
    path = path.resolve()
    draft = None
    try:
        number, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(number, "wb") as file:
            file.write(content)
        os.chmod(draft, path.stat().st_mode & 0o7777)
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
