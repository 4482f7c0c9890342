"""A lock on a folder, which ends with the process that holds it.

In:   a folder.
Out:  its lock, or whose it is.
Not:  no file is written: the lock is on the folder itself.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: set[int] = set()  # descriptors that lock a folder


class Locked(Exception):
    """Another process has the lock."""


def lock(folder: Path) -> tuple[int, bool]:
    """The descriptor to `unlock` later, and whether it locks the folder.

    Raises Locked; OSError where there is no such folder. False on a file system without locks. A
    forked process, such as a worker that outlives this one, does not have the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        unlock(descriptor)
        raise Locked from None
    except OSError:
        return descriptor, False
    return descriptor, True


def unlock(*descriptors: int) -> None:
    """Let go of them, once."""
    for descriptor in descriptors:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def is_at(descriptor: int, folder: Path) -> bool:
    """Whether the locked folder is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


# A forked process has the descriptor too, and with it would have the lock.
os.register_at_fork(after_in_child=lambda: unlock(*list(_held)))
