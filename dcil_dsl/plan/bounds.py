"""What some layers of a rule keep together.

In:   a rule's `bounds`, its Group, the layers of the model.
Out:  the Group with its bounds; E304 and E319 where they cannot be held.
Not:  the floors and ceilings of single layers (allocate.py).
"""

from __future__ import annotations

import math

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.budget import budget_size, counted, members, num_units, unit_costs
from dcil_dsl.plan.schedule import limits_at, reached_at, whole_units
from dcil_dsl.plan.select import Selection
from dcil_dsl.plan.wording import percent
from dcil_dsl.words.granularity import Single


def bind_group(rule: r.Prune, group: p.Group, selection: Selection, report: Diagnostics) -> p.Group:
    """The group with the rule's bounds, in units: floors are rounded up, ceilings down."""
    taken: dict[int, str] = {}
    bounds = [_bound(bound, group, taken, selection, report) for bound in rule.bounds]
    if None in bounds or not bounds:
        return group
    group = group.model_copy(update={"bounds": tuple(bounds)})
    size, noun = budget_size(group), counted(group, many=False)
    keeps = whole_units(size * (1 - group.sparsity))
    least, most = limits_at(group, reached_at(group))
    if not least <= keeps <= most:
        low, high = f"floors and bounds keep {least:,}", f"the bounds allow {most:,}"
        report.add(
            "E304",
            f"{percent(round(group.sparsity, 6))} of {count(size, noun)} leaves "
            f"{count(keeps, noun)}, {low if keeps < least else high}",
            rule.bounds[0].span,
        )
    return group


def _bound(
    bound: r.Bound, group: p.Group, taken: dict[int, str], selection: Selection, report: Diagnostics
) -> p.Bound | None:
    """One bound; `taken` says which members are in one already."""
    units, noun = num_units(group), group.unit.noun
    names = {name for layer in selection.select(bound.selector) for name in layer.weights}
    places = tuple(i for i, own in enumerate(members(group)) if names & set(own))
    twice = next((i for i in places if i in taken), None)
    taken.update(dict.fromkeys(places, bound.name))
    if not places:
        report.add("E319", f"the rule prunes none of `{bound.name}`", bound.span)
    elif twice is not None:
        report.add("E319", f"`{members(group)[twice][0]}` is in two bounds", bound.span)
    elif len(set(unit_costs(group))) > 1:
        report.add(
            "E319",
            f"a {noun} of one layer is not worth one of another in {counted(group)}",
            bound.span,
            help="tied filters cost as many as they are: `granularity = filter(ties = none)`"
            if group.ties
            else "`of=units` counts them alike"
            if not isinstance(group.unit, Single)
            else None,
        )
    else:
        size = sum(units[i] for i in places)
        floor = math.ceil(size * bound.floor.fraction - 1e-9) if bound.floor else 0
        ceiling = whole_units(size * bound.ceiling.fraction) if bound.ceiling else size
        least = sum(group.floors[i] for i in places)
        if least <= ceiling:
            return p.Bound(name=bound.name, members=places, floor=floor, ceiling=ceiling)
        report.add(
            "E304",
            f"`{bound.name}` keeps at most {count(ceiling, noun)}, the floors of its layers "
            f"{least:,}",
            bound.span,
        )
    return None
