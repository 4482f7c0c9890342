"""SIGINT, SIGTERM and SIGHUP become a wish that the loop reads between two steps.

In:   the signals, while the `with` is open and in the main thread only.
Out:  Wish.is_there.
Not:  nothing is stopped here; a second SIGINT or SIGTERM is no wish any more and acts as it always
      did. A terminal that goes away sends SIGHUP more than once, from the kernel and from the
      shell: that is one wish. Where SIGHUP is ignored, as under nohup, it stays ignored.
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
    handlers = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGHUP)}

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
    if handlers[signal.SIGHUP] != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, note)
    try:
        yield wish
    finally:
        put_back(*handlers)
