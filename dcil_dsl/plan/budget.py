"""What a group's budget counts: its members, their units, what a unit costs.

In:   a Group of the Plan, or a Promise of an export.
Out:  counts, one for each member.
Not:  no time (schedule.py), no tensors (masking/units.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from dcil_dsl.plan.group import Budgeted


def members(group: Budgeted, of: Sequence | None = None) -> list[tuple]:
    """`of`, a sequence along group.parameters (None: those themselves), cut into members.

    A member is one weight, or the weights that share an attention's heads.
    """
    entries = tuple(group.parameters if of is None else of)
    stops = list(accumulate(group.spans or [1] * len(entries)))
    return [entries[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def num_units(group: Budgeted) -> tuple[int, ...]:
    """How many units each member has; of an N:M pattern the units are single weights."""
    if group.unit.single:
        return group.num_weights
    return tuple(cuts[0].num_units for cuts in members(group, group.cuts))


def unit_costs(group: Budgeted) -> tuple[int, ...]:
    """What a unit of each member costs the budget."""
    return group.costs or (1,) * len(num_units(group))


def budget_size(group: Budgeted) -> int:
    """What the budget would be if nothing were pruned."""
    return sum(n * cost for n, cost in zip(num_units(group), unit_costs(group), strict=True))


def counted(group: Budgeted, many: bool = True) -> str:
    """What the budget counts, in a word: "weights", "filters", "multiply-accumulates"."""
    noun = {"weights": "weight", "flops": "multiply-accumulate"}.get(group.of, group.unit.noun)
    return noun + "s" * many
