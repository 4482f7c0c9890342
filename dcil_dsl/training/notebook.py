"""The screen of a run in a notebook: the rows so far, and a bar that moves.

In:   rows as text with a style; the step, the number of steps, words.
Out:  one output of the cell, which is replaced as the run proceeds; the rows stay at the end.
Not:  nothing is printed, and no widget library is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from math import ceil

from dcil_dsl.diagnostics.html import framed

SECONDS_BETWEEN_UPDATES = 0.2
STYLES = {"bold": "font-weight:bold", "green": "color:#15803d", "": ""}


def show_in_cell() -> Callable[[str], None]:
    """A function that shows HTML as an output of the cell that runs, in place of what it showed."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)

    def show(html: str) -> None:
        handle.update(HTML(html))

    return show


@dataclass
class NotebookScreen:
    """show: replaces the HTML that is on the screen; None: an output of the cell, from its first
    line on."""

    show: Callable[[str], None] | None = None
    rows: list[tuple[str, str]] = field(default_factory=list)
    shown_at: float = -SECONDS_BETWEEN_UPDATES
    began: tuple[int, float] = (0, 0.0)  # step and time

    def begin(self, step: int) -> None:
        self.began = (step, time.monotonic())

    def add(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self.rows.append((text, style))
        self._show(self._rows())

    def move(self, step: int, num_steps: int, words: str) -> None:
        """The bar below the lines, at most some times a second."""
        now = time.monotonic()
        if now - self.shown_at < SECONDS_BETWEEN_UPDATES:
            return
        self.shown_at = now
        done = step - self.began[0]
        left = ceil((now - self.began[1]) / done * (num_steps - step)) if done > 0 else None
        eta = "-:--:--" if left is None else str(timedelta(seconds=left))
        self._show(
            f'{self._rows()}<div style="font-family:monospace">'
            f'<progress value="{step}" max="{num_steps}" style="width:20em"></progress> '
            f"{step}/{num_steps} ETA {eta}  {escape(words)}</div>"
        )

    def end(self) -> None:
        """Take the bar away."""
        if self.rows:
            self._show(self._rows())

    def _show(self, html: str) -> None:
        if self.show is None:
            self.show = show_in_cell()
        self.show(html)

    def _rows(self) -> str:
        lines = (
            f'<span style="{STYLES.get(s, "")}">{escape(text)}</span>' for text, s in self.rows
        )
        return framed("\n".join(lines))
