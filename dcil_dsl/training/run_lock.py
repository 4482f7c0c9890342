"""One process at a time trains in a run folder.

In:   a run folder.
Out:  a lock on it while a `with` is open.
Not:  nothing is read or written: a lock on the folder itself leaves no file behind (locks.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.training.locks import Locked, lock, unlock
from dcil_dsl.training.run import RunFolder

TRIES = 5  # a process that looks for abandoned drafts holds a new run for a moment (drafts.py)


@contextmanager
def hold_run(run: RunFolder) -> Iterator[None]:
    """Keep every other process from training in this folder. InputError where one does already.

    The lock ends with the process, however that ends; a worker that outlives it holds nothing. A
    file system without locks holds nothing either.
    """
    for left in reversed(range(TRIES)):
        try:
            descriptor, _ = lock(run.path)
            break
        except Locked:
            if not left:
                raise InputError(
                    f"another process is training in {run.path}", help="wait for it, or end it"
                ) from None
            sleep(0.02)
    try:
        yield
    finally:
        unlock(descriptor)
