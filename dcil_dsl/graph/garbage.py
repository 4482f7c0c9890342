"""Python's cyclic garbage collector, run more seldom while large graphs are made.

In:   nothing.
Out:  a context, or a decorator, under which it waits for more new objects.
Not:  it never stops altogether: what the passes leave behind are graphs, which are cycles, and
      with none of them freed compiling adds twice as much memory.

A graph of n nodes is some hundred n objects that all stay. By default the collector looks after
each 700 of them, and now and then at everything there is: a sixth of the time to compile.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000  # between two collections; more saves nothing and holds more memory

_lock = threading.Lock()
_within = 0  # contexts that are open, in all threads: the setting is the process's
_before: tuple[int, int, int] | None = None


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Collect after each NEW_OBJECTS; afterwards as before, also after an error.

    Where the caller collects as seldom, or not at all, nothing changes. Of contexts within each
    other, or in several threads, the first sets and the last one to end sets back.
    """
    global _within, _before
    with _lock:
        _within += 1
        if _within == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < NEW_OBJECTS:
                gc.set_threshold(NEW_OBJECTS, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                gc.set_threshold(*_before)
