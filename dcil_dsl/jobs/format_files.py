"""Rewrite recipe files in the canonical form, in place.

In:   paths of .prune files.
Out:  the paths of the files that are not canonical; those files rewritten, each atomically.
Not:  no layout (lang/fmt.py). If one file does not parse, none is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dcil_dsl.diagnostics import InputError, RecipeError


def format_files(paths: Sequence[Path], write: bool) -> list[Path]:
    """The files whose text is not canonical; rewritten if `write`.

    Raises RecipeError with the errors of all files, and InputError for an unreadable one.
    """
    from dcil_dsl.lang.fmt import format_text
    from dcil_dsl.lang.merge import decode

    texts, wrong = {}, []
    for path in paths:
        # Bytes are compared: a file with \r\n or a byte order mark is not canonical.
        given = _read(path)
        try:
            text = format_text(decode(given, str(path)), str(path))
        except RecipeError as error:
            wrong += error.diagnostics
        else:
            texts[path] = (given, text.encode())
    if wrong:
        raise RecipeError(wrong)
    changed = [path for path, (given, canonical) in texts.items() if given != canonical]
    if write:
        for path in changed:
            _write(path, texts[path][1])
    return changed


def _read(path: Path) -> bytes:
    from dcil_dsl.lang.merge import Unreadable, read_bytes

    try:
        return read_bytes(path)
    except Unreadable as error:
        raise InputError(f"cannot read {path}: {error}") from None


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
