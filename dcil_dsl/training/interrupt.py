"""SIGINT and SIGTERM become a wish that the loop reads between two steps.

In:   the two signals, while the `with` is open and in the main thread only.
Out:  Wish.is_there.
Not:  nothing is stopped here; a second signal is no wish any more and acts as it always did.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Wish:
    """Whether someone asked to stop."""

    is_there: bool = False


@contextmanager
def wish_to_stop() -> Iterator[Wish]:
    """Catch the first signal; put the handlers back at once, so that a second one ends us."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # Python lets only the main thread set a handler
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def put_back() -> None:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: object) -> None:
        wish.is_there = True
        put_back()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        put_back()
