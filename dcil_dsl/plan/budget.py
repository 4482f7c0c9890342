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

    A member is one weight, the weights that share an attention's heads, or those whose filters a
    tie joins.
    """
    entries = tuple(group.parameters if of is None else of)
    if group.ties:
        place = {name: i for i, name in enumerate(group.parameters)}
        return [tuple(entries[place[part.parameter]] for part in tie.parts) for tie in group.ties]
    stops = list(accumulate(group.spans or [1] * len(entries)))
    return [entries[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def num_units(group: Budgeted) -> tuple[int, ...]:
    """How many units each member has; of an N:M pattern the units are single weights."""
    if group.unit.single:
        return group.num_weights
    if group.ties:
        return tuple(tie.num_units for tie in group.ties)
    return tuple(cuts[0].num_units for cuts in members(group, group.cuts))


def weights_of_unit(group: Budgeted) -> list[dict[str, int]]:
    """For each member how many weights of each parameter one of its units has."""
    sizes = dict(zip(group.parameters, group.num_weights, strict=True))
    if group.ties:
        filters = dict(zip(group.parameters, (c.num_units for c in group.cuts), strict=True))
        return [
            {name: n * (sizes[name] // filters[name]) for name, n in tie.filters_of_unit.items()}
            for tie in group.ties
        ]
    counts = zip(members(group), num_units(group), strict=True)
    return [{name: sizes[name] // max(1, total) for name in names} for names, total in counts]


def member_name(group: Budgeted, index: int) -> str:
    """A member as messages name it: its first weight, and how many more there are."""
    names = members(group)[index]
    if not group.ties or len(names) == 1:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} tied to it"


def unit_costs(group: Budgeted) -> tuple[int, ...]:
    """What a unit of each member costs the budget."""
    return group.costs or (1,) * len(num_units(group))


def budget_size(group: Budgeted) -> int:
    """What the budget would be if nothing were pruned."""
    return sum(n * cost for n, cost in zip(num_units(group), unit_costs(group), strict=True))


def kept_in_budget(group: Budgeted, keeps: Sequence[int]) -> int:
    """What `keeps` (schedule.keeps_at) lets stay, in what the budget counts."""
    if group.one_budget:
        return keeps[0]
    return sum(n * cost for n, cost in zip(keeps, unit_costs(group), strict=True))


def counted(group: Budgeted, many: bool = True) -> str:
    """What the budget counts, in a word: "weights", "filters", "multiply-accumulates"."""
    noun = {"weights": "weight", "flops": "multiply-accumulate"}.get(group.of, group.unit.noun)
    return noun + "s" * many
