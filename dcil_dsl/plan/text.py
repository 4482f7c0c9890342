"""The text of printed values: numbers, steps, tables, the curve of a schedule.

In:   numbers, strings and rows; a Group; the Page.
Out:  text that fits the Page.
Not:  nothing is computed that schedule.py does not say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import wrap
from typing import TextIO

from dcil_dsl.plan.group import Group
from dcil_dsl.plan.records import PlanFields, Window
from dcil_dsl.plan.schedule import last_refresh, sparsity_at

NARROWEST, WIDEST = 60, 140  # columns between which lines are laid out


@dataclass(frozen=True)
class Page:
    """The output's width in columns; `unicode` if it can show block characters."""

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


def moment(step: int, plan: PlanFields) -> str:
    """ "step 1,000 (epoch 2.5)"."""
    return f"step {step:,} (epoch {step / max(1, plan.steps_per_epoch):.4g})"


def stretch(window: Window, plan: PlanFields) -> str:
    """ "steps 0 to 1,000 (epoch 0 to 2.5)", or "the whole run"."""
    stop = plan.num_steps if window.stop is None else window.stop
    which = ""
    if window.every > 1:
        nth = ordinal(window.every)
        which = f", all steps but every {nth}" if window.others else f", every {nth} step"
        if window.offsets != (0,):
            which += f" from step {' and '.join(map(str, window.offsets))} on"
    if window.start == 0 and stop >= plan.num_steps:
        return f"the whole run{which}"
    epochs = (f"{step / max(1, plan.steps_per_epoch):.4g}" for step in (window.start, stop))
    return f"steps {window.start:,} to {stop:,} (epoch {' to '.join(epochs)}){which}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Columns as wide as their widest cell, two spaces between; `right`: r or l per column."""
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
    """Cut the middle: both ends of a layer's name say more."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def fit(text: str, width: int) -> str:
    """Wrap lines longer than `width`, with an indent."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += wrap(line, width, subsequent_indent=indent) if len(line) > width else [line]
    return "\n".join(lines)


# -- the curve of a schedule -----------------------------------------------------------------------


HEIGHT, WIDEST_CURVE, MARGIN = 6, 72, 8
# Cells filled from below, from empty to full.
BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
ASCII_CELLS = " .:#"


def draw_schedule(group: Group, plan: PlanFields, page: Page) -> list[str]:
    """The curve of one group; nothing where the run has no steps.

    90%|                       ####
       |             .:########
    45%|       .:####
     0%|___.:#
       |^^^^^^^^^^^^^^^^........   masks move, stand still
       +------+------+------+---
       0      1      2      3      epochs
       0      391    782    1,173  steps
    """
    num_steps = plan.num_steps
    if not num_steps:
        return []
    width = max(
        10, min(WIDEST_CURVE, page.width - MARGIN - 10, num_steps if num_steps > 40 else 99)
    )
    columns = [
        (i * num_steps // width, max((i + 1) * num_steps // width - 1, i * num_steps // width))
        for i in range(width)
    ]
    values = [sparsity_at(group, last_refresh(group, last)) for _, last in columns]
    top = max(max(values), 1e-9)
    rows = filled([value / top for value in values], HEIGHT, page.unicode)
    lines = []
    for index, row in enumerate(rows):
        edge = top * (HEIGHT - index) / HEIGHT
        label = percent(round(edge, 3)) if index % 2 == 0 else ""
        lines.append(f"{label:>{MARGIN - 2}} |{row}")
    marks = "".join("^" if _moves(group, *column) else "." for column in columns)
    lines.append(f"{'masks':>{MARGIN - 2}} |{marks}")
    return [line.rstrip() for line in lines] + _axis(plan, width)


def filled(fractions: Sequence[float], height: int, unicode: bool) -> list[str]:
    """Columns filled from below to the given fractions of `height` rows, the top row first.

    A value above zero is never drawn as nothing.
    """
    cells = BLOCKS if unicode else ASCII_CELLS
    steps = len(cells) - 1
    levels = [max(round(f * height * steps), 1 if f > 0 else 0) for f in fractions]
    return [
        "".join(cells[min(max(level - row * steps, 0), steps)] for level in levels)
        for row in reversed(range(height))
    ]


def bar(fraction: float, width: int, unicode: bool) -> str:
    """A horizontal bar, "####"; more than the whole is drawn as the whole."""
    length = min(max(fraction, 0.0), 1.0) * width
    if not unicode:
        return "#" * max(round(length), 1 if fraction > 0 else 0)
    eighths = max(round(length * 8), 1 if fraction > 0 else 0)
    # Left blocks stand in Unicode from the whole one down to the eighth.
    rest = chr(0x2590 - eighths % 8) if eighths % 8 else ""
    return "\u2588" * (eighths // 8) + rest


def same_curve(group: Group) -> tuple[object, ...]:
    """What decides how a group's curve looks: groups that agree in it need one drawing."""
    times = group.refresh, group.moments, group.freeze
    return group.schedule, group.sparsity, group.before, times


def _moves(group: Group, first: int, last: int) -> bool:
    """Whether masks move at a step of first..last: the latest move is not before them."""
    return last_refresh(group, last) >= first


def _axis(plan: PlanFields, width: int) -> list[str]:
    """The line under the curve with its ticks, labelled in epochs and in steps."""
    epochs = plan.num_steps / max(1, plan.steps_per_epoch)
    apart = _round_number(epochs / max(1, width // 12))
    marks = [i * apart for i in range(int(epochs / apart + 1e-9) + 1)]
    places = [min(round(mark / epochs * width), width - 1) for mark in marks]
    rule = ["-"] * width
    for place in places[1:]:
        rule[place] = "+"
    indent = " " * (MARGIN - 1)
    return [
        f"{indent}+{''.join(rule)}",
        f"{'epoch':>{MARGIN - 2}}  {_spread(places, [f'{mark:.6g}' for mark in marks])}",
        f"{'step':>{MARGIN - 2}}  "
        + _spread(places, [f"{round(mark * plan.steps_per_epoch):,}" for mark in marks]),
    ]


def _spread(places: Sequence[int], labels: Sequence[str]) -> str:
    """Labels that begin at their places; one that would touch its neighbour is left out."""
    line = ""
    for place, label in zip(places, labels, strict=True):
        start = place if place == 0 else max(0, place - len(label) // 2)
        if not line or start > len(line):
            line = line.ljust(start) + label
    return line


def _round_number(size: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... that is not below `size`; parts of an epoch too."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= size * (1 - 1e-9))
