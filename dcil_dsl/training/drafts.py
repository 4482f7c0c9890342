"""A folder in the making, beside the place that it takes when it is whole.

In:   the folder in which it will lie, and its name.
Out:  an empty hidden folder while a `with` is open; none is left behind.
Not:  what is written into it, and how it takes its place, is the caller's (run.py).

A process that is killed leaves its draft. The lock on it ends with the process, so the next one
that makes a draft in the same folder finds it without a lock and removes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcil_dsl.training.locks import Locked, is_at, lock, unlock

MARK = ".dcil-draft-"  # in the name: a folder of this name is nobody else's


@contextmanager
def draft_in(parent: Path, name: str) -> Iterator[Path]:
    """A new folder, locked, with the permissions that mkdir gives. Abandoned drafts go first."""
    _remove_abandoned(parent)
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{name}{MARK}", dir=parent))
        try:
            descriptor, _ = lock(draft)
        except (Locked, FileNotFoundError):  # taken for abandoned in this moment
            continue
        if is_at(descriptor, draft):
            break
        unlock(descriptor)
    try:
        draft.chmod(0o777 & ~_umask())  # mkdtemp makes it for its owner alone
        yield draft
    finally:
        unlock(descriptor)
        if draft.exists():
            shutil.rmtree(draft, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Only those whose lock was free: a file system without locks keeps them all."""
    drafts: list[Path] = []
    with suppress(OSError):  # whether a draft can be made there is told by making one
        drafts = list(parent.glob(f".*{MARK}*"))
    for draft in drafts:
        with suppress(Locked, OSError):  # at work, gone, or another user's
            descriptor, is_ours = lock(draft)
            try:
                if is_ours and is_at(descriptor, draft):
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                unlock(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
