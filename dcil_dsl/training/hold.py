"""One process at a time trains in a run folder.

In:   a run folder.
Out:  a lock on it while a `with` is open.
Not:  nothing is read or written: a lock on the folder itself leaves no file behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.training.run import RunFolder

_held: set[int] = set()  # descriptors that lock a folder


@contextmanager
def hold_run(run: RunFolder) -> Iterator[None]:
    """Keep every other process from training in this folder. InputError where one does already.

    The lock ends with the process, however that ends; a worker that outlives it holds nothing. A
    file system without locks holds nothing either.
    """
    descriptor = os.open(run.path, os.O_RDONLY)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _let_go(descriptor)
        raise InputError(
            f"another process is training in {run.path}", help="wait for it, or end it"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        _let_go(descriptor)


def _let_go(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


# A forked process has the descriptor too, and with it would have the lock.
os.register_at_fork(after_in_child=lambda: _let_go(*_held))
