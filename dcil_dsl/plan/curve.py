"""The sparsity of a group over the run, drawn in the terminal.

In:   a group of the Plan, and the page.
Out:  lines of text: a filled curve, when masks move, the axis in epochs and in steps.
Not:  nothing is computed that schedule.py does not say; what is drawn is what is in force, so a
      ramp whose masks move seldom has stairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.plan.schedule import last_refresh, sparsity_at
from dcil_dsl.plan.wording import Page, percent

HEIGHT, WIDEST, MARGIN = 6, 72, 8
# A cell that is filled from below by so many of its steps, the last is the whole cell.
BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
ASCII_CELLS = " .:#"


def draw_schedule(group: Group, plan: Plan, page: Page) -> list[str]:
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
    width = max(10, min(WIDEST, page.width - MARGIN - 10, num_steps if num_steps > 40 else 99))
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
    """Columns filled from below to so many fractions of `height` rows, the top row first.

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


def same_curve(group: Group) -> tuple:
    """What decides how a group's curve looks: groups that agree in it need one drawing."""
    return group.schedule, group.sparsity, group.refresh, group.moments, group.freeze


def _moves(group: Group, first: int, last: int) -> bool:
    """Whether masks move at a step of first..last: the latest move is not before them."""
    return last_refresh(group, last) >= first


def _axis(plan: Plan, width: int) -> list[str]:
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
