"""Files that are written as a whole or not at all, and the errors of the disk.

In:   a path, and a function that writes a file or a text.
Out:  the file; InputError where it cannot be written or read.
Not:  no file of a run has a name here (run.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dcil_dsl.diagnostics.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file next to `path`, then rename it to `path`.

    Whoever reads sees the old file or the new one, also after a power cut. InputError where it
    cannot be written; the old file is still there then.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # of a process that was killed
        draft.touch()
        mode = draft.stat().st_mode  # safetensors would leave the file to its owner alone
        write(draft)
        draft.chmod(mode)
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # where the folder is a file, the error above says so
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """write_atomically for text."""
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"cannot read {path}: it is not a file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"cannot read {path}: {reason}") from None


def cannot_write(path: Path, error: Exception) -> InputError:
    """The error for a full disk, a missing permission and the like."""
    reason = getattr(error, "strerror", None) or str(error)
    help = "free some space and continue with --resume" if _is_full(error) else None
    return InputError(f"cannot write {path}: {reason}", help=help)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception) -> bool:
    """Whether the disk, a quota or the largest file size is exceeded."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    in_words = (f"os error {number})" for number in numbers)  # of safetensors
    return getattr(error, "errno", None) in numbers or any(w in str(error) for w in in_words)
