"""Signals of this process, and its locks on folders.

In:   signals; folders.
Out:  Wish, which the loop reads between two steps; a lock on a run folder, so that one process at a
      time trains in it; a draft of a folder, which disappears with the process that makes it.
Not:  nothing is stopped here, and no lock is a file: locks are on the folders themselves.

SIGINT, SIGTERM and SIGHUP become a wish to stop. A second SIGINT or SIGTERM ends the process.
A closed terminal sends SIGHUP more than once, from the kernel and from the shell: that counts as
one wish. Where SIGHUP is ignored, as under nohup, it stays ignored. A process that is killed leaves
its draft. The lock on it ends with the process, so the next one that makes a draft in the same
folder finds it without a lock and removes it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from types import ModuleType

from dcil_dsl.diagnostics.errors import InputError

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# -- signals -----------------------------------------------------------------------------------


SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows


@dataclass
class Wish:
    """Whether someone asked to stop."""

    is_there: bool = False


@contextmanager
def wish_to_stop() -> Iterator[Wish]:
    """Catch the first signal; restore the handlers at once: a second one ends the process."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # Python lets only the main thread set a handler
        return
    handlers = {number: signal.getsignal(number) for number in (*SIGNALS, HANGUP) if number}

    def put_back(*numbers: signal.Signals) -> None:
        for number in numbers:
            handler = handlers[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: object) -> None:
        wish.is_there = True
        if number in SIGNALS:
            put_back(*SIGNALS)

    for number in SIGNALS:
        signal.signal(number, note)
    if HANGUP is not None and handlers[HANGUP] != signal.SIG_IGN:
        signal.signal(HANGUP, note)
    try:
        yield wish
    finally:
        put_back(*handlers)


# -- locks -------------------------------------------------------------------------------------


_held: set[int] = set()  # descriptors that lock a folder


def require_locks(what: str) -> None:
    """InputError on a system without POSIX file locks."""
    if fcntl is None:
        raise InputError(
            f"{what} needs the file locks of Linux or macOS, which Windows does not have",
            help="run it in the Windows Subsystem for Linux (WSL)",
        )


class Locked(Exception):
    """Another process has the lock."""


def lock(folder: Path) -> tuple[int, bool]:
    """The descriptor to `unlock` later, and whether it locks the folder.

    Raises Locked; OSError where there is no such folder; InputError on Windows. False on a file
    system without locks. A forked process, such as a worker that outlives this one, does not have
    the lock.
    """
    require_locks("a folder that one process writes")
    assert fcntl is not None
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
    """Release the locks, once."""
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
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=lambda: unlock(*list(_held)))


# -- the lock of a run folder ------------------------------------------------------------------


TRIES = 5  # a process that looks for abandoned drafts locks a new run for a moment


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Keep every other process from training in this folder. InputError if one already does.

    The lock ends with the process, however that ends; a worker that outlives it has no lock. On a
    file system without locks nothing is locked.
    """
    for left in reversed(range(TRIES)):
        try:
            descriptor, _ = lock(run)
            break
        except Locked:
            if not left:
                raise InputError(
                    f"another process is training in {run}", help="wait for it, or end it"
                ) from None
            sleep(0.02)
    try:
        yield
    finally:
        unlock(descriptor)


# -- drafts ------------------------------------------------------------------------------------


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
    with suppress(OSError):  # whether a draft can be made there shows when one is made
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
