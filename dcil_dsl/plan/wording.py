"""Numbers, moments and tables in the words of everything that is printed.

In:   numbers, texts and rows; the Page they are printed on.
Out:  text that fits it.
Not:  nothing here knows what is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import wrap
from typing import TextIO

from dcil_dsl.plan.plan import Plan, Window

NARROWEST, WIDEST = 60, 140  # columns between which lines are laid out


@dataclass(frozen=True)
class Page:
    """What is printed on: so many columns; `unicode` where block characters can be shown."""

    width: int = 100
    unicode: bool = False


PLAIN = Page()  # files, pipes and golden tests


def page_of(stream: TextIO) -> Page:
    """The terminal that a stream goes to, else the plain page: a file holds the same everywhere."""
    if not stream.isatty():
        return PLAIN
    try:
        "\u2581\u2588\u258f".encode(stream.encoding or "ascii")
        unicode = True
    except (UnicodeEncodeError, LookupError):
        unicode = False
    return Page(max(NARROWEST, min(get_terminal_size().columns, WIDEST)), unicode)


def percent(fraction: float) -> str:
    """0.9 -> "90%", 0.925 -> "92.5%"."""
    return f"{100 * fraction:.6g}%"


def ordinal(number: int) -> str:
    """2 -> "2nd", 3 -> "3rd", 4 -> "4th", 11 -> "11th"."""
    teens = 10 < number % 100 < 14
    return f"{number:,}" + ("th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


def setting(value: object) -> str:
    """One setting's value: "yes", "0.9 0.999", "0.1"."""
    if value is True:
        return "yes"
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


def moment(step: int, plan: Plan) -> str:
    """ "step 1,000 (epoch 2.5)"."""
    return f"step {step:,} (epoch {step / max(1, plan.steps_per_epoch):.4g})"


def stretch(window: Window, plan: Plan) -> str:
    """ "steps 0 to 1,000 (epoch 0 to 2.5)", or "the whole run"."""
    stop = plan.num_steps if window.stop is None else window.stop
    which = ""
    if window.every > 1:
        which = (
            f", all steps but every {ordinal(window.every)}"
            if window.others
            else (f", every {ordinal(window.every)} step")
        )
    if window.start == 0 and stop >= plan.num_steps:
        return f"the whole run{which}"
    epochs = (f"{step / max(1, plan.steps_per_epoch):.4g}" for step in (window.start, stop))
    return f"steps {window.start:,} to {stop:,} (epoch {' to '.join(epochs)}){which}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Columns as wide as their widest cell, two spaces between; `right` has an r or l a column."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *rows]
    ]


def named_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: str, room: int, page: Page
) -> list[tuple[str, ...]]:
    """The lines of each row, the header's first. A name, in the first column, that is longer than
    `room` stands on a line of its own above its row: cut short, two layers would look alike."""
    fits = [len(row[0]) <= room for row in rows]
    cut = [row if fit else ("", *row[1:]) for row, fit in zip(rows, fits, strict=True)]
    lines = table((shorten(header[0], room), *header[1:]), cut, right)
    return [(lines[0],)] + [
        (line,) if fit else (shorten(row[0], page.width), line)
        for line, row, fit in zip(lines[1:], rows, fits, strict=True)
    ]


def shorten(text: str, width: int) -> str:
    """The middle goes first: both ends of a layer's name tell more."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def fit(text: str, width: int) -> str:
    """Lines longer than `width` go on in the next line, further in."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += wrap(line, width, subsequent_indent=indent) if len(line) > width else [line]
    return "\n".join(lines)
