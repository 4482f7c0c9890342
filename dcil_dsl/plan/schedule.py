"""Sparsity as a pure function of the step, and the steps at which masks change.

In:   a Group of the Plan and a step, counted from 0 before the first update.
Out:  the requested sparsity of that step, how much is kept, whether masks change.
Not:  no tensors; masking/select.py makes the masks.
"""

from __future__ import annotations

from dcil_dsl.plan.group import (
    Bound,
    Group,
    Stage,
    budget_size,
    num_units,
    unit_costs,
    weights_left,
)


def sparsity_at(group: Stage, step: int) -> float:
    """The requested pruned share of the group's budget at `step`.

    Where units are pruned before, the budget is of all weights, and the group's own share of what
    they leave:  1 - (1 - s) * left / all.
    """
    own, whole = _own_sparsity(group, step), budget_size(group)
    if not isinstance(group, Group) or group.before is None or not whole:
        return own
    costs = unit_costs(group)
    left = sum(n * cost for n, cost in zip(sizes_at(group, step), costs, strict=True))
    return 1 - (1 - own) * left / whole


def _own_sparsity(group: Stage, step: int) -> float:
    """The schedule's share.

    An N:M pattern prunes whole weights of each m, so a ramp to 2:4 keeps 4, 3 and 2 of 4.
    """
    sparsity = group.schedule.sparsity(step, group.sparsity)
    if group.pattern is None:
        return sparsity
    return int(sparsity * group.pattern.m + 1e-9) / group.pattern.m


def limit_at(group: Stage, step: int) -> float | None:
    """The score below which units are pruned at `step`; None where a share is asked for.

    0 while the schedule has not begun, when nothing is pruned.
    """
    if not group.target.is_result:
        return None
    return group.target.limit * group.schedule.sparsity(step, 1.0)


def sizes_at(group: Stage, step: int) -> tuple[int, ...]:
    """The units of each member, of which the group's own share is pruned: those that are left of
    it at `step`, where whole units are pruned before."""
    if not isinstance(group, Group) or group.before is None:
        return num_units(group)
    left = weights_left(group.before, keeps_at(group.before, step))
    return tuple(left[name] for name in group.parameters)


def floors_at(group: Stage, step: int) -> tuple[int, ...]:
    """The floors, of at most what is left."""
    return tuple(map(min, group.floors, sizes_at(group, step)))


def reached_at(group: Stage) -> int:
    """The first step at which the target is requested in full, and that of the units before."""
    return max(_turns(group))


def _turns(group: Stage) -> tuple[int, ...]:
    """The steps at which a target is reached."""
    before = () if not isinstance(group, Group) or group.before is None else _turns(group.before)
    return group.schedule.reached, *before


def keeps_at(group: Stage, step: int) -> tuple[int, ...]:
    """How much may be kept: one number, in what the budget counts, of a group with one budget; else
    the units that each member may keep.

    Never below the floors nor above the ceilings, which are part of the promise. A global
    budget may be left with less than what the cheapest unit costs.
    """
    sparsity, units = _own_sparsity(group, step), sizes_at(group, step)
    floors, ceilings = floors_at(group, step), ceilings_at(group, step)
    if group.one_budget:
        least, most = limits_at(group, step)
        size = sum(n * cost for n, cost in zip(units, unit_costs(group), strict=True))
        return (min(max(whole_units(size * (1.0 - sparsity)), least), most),)
    return tuple(
        min(max(whole_units(count * (1.0 - share)), floor), ceiling)
        for count, share, floor, ceiling in zip(
            units, _shares(group, sparsity), floors, ceilings, strict=True
        )
    )


def _shares(group: Stage, sparsity: float) -> tuple[float, ...]:
    """The sparsity of each member while the group's is `sparsity`.

    Each has reached the same share of its target as the group has of its own, so that together
    they have the sparsity of the schedule: sum n_l * S_l * (s / S) = n * s.
    """
    if not group.targets:
        return (sparsity,) * len(num_units(group))
    done = sparsity / group.sparsity if group.sparsity else 0.0
    return tuple(target * done for target in group.targets)


def reserved_at(group: Group, step: int) -> tuple[int, ...]:
    """keeps_at with the reserve: the masks and the next best together, at most all there is."""
    sizes = (budget_size(group),) if group.one_budget else num_units(group)
    return tuple(
        min(keep + whole_units(group.reserve * size), size)
        for keep, size in zip(keeps_at(group, step), sizes, strict=True)
    )


def ceilings_at(group: Stage, step: int) -> tuple[int, ...]:
    """The most units each member may keep.

    As much of a ceiling holds as of the target: what must go of a layer goes in step with the
    ramp, and where nothing is pruned yet nothing of any layer has to be.

        at sparsity s of a target S a layer of n units keeps at most n - (n - ceiling) * s / S
    """
    units = sizes_at(group, step)
    if not group.ceilings:
        return units
    done = _done(group, step)
    return tuple(_lowered(n, c, done) for n, c in zip(units, group.ceilings, strict=True))


def bounds_at(group: Stage, step: int) -> tuple[Bound, ...]:
    """The bounds with the ceilings that hold at `step`, as those of single layers do."""
    units, done = num_units(group), _done(group, step)
    return tuple(
        bound.model_copy(
            update={"ceiling": _lowered(sum(units[i] for i in bound.members), bound.ceiling, done)}
        )
        for bound in group.bounds
    )


def limits_at(group: Stage, step: int) -> tuple[int, int]:
    """The least and the most of a global budget that floors, ceilings and bounds leave open."""
    floors, ceilings = floors_at(group, step), ceilings_at(group, step)
    costs = unit_costs(group)
    least, most = (
        sum(count * cost for count, cost in zip(counts, costs, strict=True))
        for counts in (floors, ceilings)
    )
    for bound in bounds_at(group, step):
        low, high = (sum(counts[i] for i in bound.members) for counts in (floors, ceilings))
        least += max(bound.floor - low, 0) * costs[0]
        most -= max(high - bound.ceiling, 0) * costs[0]
    return least, most


def _done(group: Stage, step: int) -> float:
    """How much of the target the ramp has reached."""
    return _own_sparsity(group, step) / group.sparsity if group.sparsity else 0.0


def _lowered(size: int, ceiling: int, done: float) -> int:
    return size - whole_units((size - ceiling) * done)


def is_refresh(group: Group, step: int) -> bool:
    """Whether the masks of the group are recomputed before `step`.

    In addition to the multiples of `refresh`, masks are recomputed when the target is reached and
    when they freeze, so that a finished ramp ends at exactly the requested sparsity.
    """
    if group.freeze is not None and step > group.freeze:
        return False
    is_regular = step in group.moments if group.moments else step % group.refresh == 0
    return is_regular or step in (0, *_turns(group), group.freeze)


def last_refresh(group: Group, step: int) -> int:
    """The latest step up to and including `step` at which the masks were recomputed."""
    if group.freeze is not None:
        step = min(step, group.freeze)
    regular = group.moments or (step // group.refresh * group.refresh,)
    moments = (0, *regular, *_turns(group), group.freeze)
    return max(moment for moment in moments if moment is not None and moment <= step)


def num_refreshes(group: Group, num_steps: int) -> int:
    """How many of the steps 0..num_steps - 1 satisfy is_refresh, by arithmetic."""
    if num_steps <= 0:
        return 0
    last = num_steps - 1 if group.freeze is None else min(num_steps - 1, group.freeze)
    extra = {0, *group.moments, *_turns(group)}
    extra |= set() if group.freeze is None else {group.freeze}
    if group.moments:
        return sum(step <= last for step in extra)
    return last // group.refresh + 1 + sum(s <= last and s % group.refresh != 0 for s in extra)


def whole_units(count: float) -> int:
    """The whole units in a share of them, rounded down: never less sparse than requested.

    The slack is for 1 - 0.9 = 0.09999999999999998 of ten weights, which is one weight.
    """
    return int(count * (1 + 1e-12) + 1e-9)
