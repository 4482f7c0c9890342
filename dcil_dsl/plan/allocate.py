"""The budget of each rule, and how its layers share it.

In:   a `prune` rule and the weights it owns.
Out:  a Group of the Plan; E304, E305 and E319 if the requested sparsity cannot be reached.
Not:  which weights are pruned (masking/select.py decides at each refresh).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.layers import HeadShare, Weight
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.group import budget_size, counted, members, num_units, unit_costs
from dcil_dsl.plan.schedule import floors_at, limits_at, reached_at, sizes_at, whole_units
from dcil_dsl.plan.select import Selection
from dcil_dsl.plan.text import percent
from dcil_dsl.plan.ties import warn_of_bound
from dcil_dsl.plan.units import (
    Member,
    divide,
    filter_floor,
    tensor_core_obstacle,
    tie_members,
    unit_prices,
)
from dcil_dsl.words.granularity import Head, Single
from dcil_dsl.words.targets import Divided, Target, Unfit
from dcil_dsl.words.units import Percent
from dcil_dsl.words.word import RunLength

DEFAULT_FLOOR = 1  # one unit: no budget can remove a whole layer by accident


def allocate_group(
    rule: r.PruneRule,
    place: str,
    weights: tuple[Weight, ...],
    heads: Mapping[str, HeadShare],
    ties: tuple[p.Tie, ...],
    run: RunLength,
    report: Diagnostics,
) -> p.Group | None:
    """The budget of one rule. Weights that do not fall into the rule's units, budgets below the
    floors or above the ceilings, and ramps that the run or the freeze cuts off, are errors: the
    requested sparsity would not be reached. None if there is no budget.
    """
    target = rule.target.in_steps(run)
    unit = target.pattern or rule.granularity
    divided = divide(rule, unit, weights, heads, report)
    owned = tie_members(divided, ties) if divided and ties else divided
    of, costs = unit_prices(rule, unit, owned or [], report)
    if divided is None or owned is None or costs is None:
        return None
    weights = tuple(weight for member in divided for weight in member.weights)
    pattern = target.pattern
    sizes = [math.prod(m.weights[0].shape) if pattern else m.num_units for m in owned]
    floors = tuple(filter_floor(rule.filter_floor, w) for w in weights) if rule.filter_floor else ()
    if target.needs_layers:
        fitted = _fitted(rule, target, owned, sizes, costs, report)
        if fitted is None:
            return None
        target = fitted
    group = p.Group(
        rule=place,
        parameters=tuple(weight.name for weight in weights),
        num_weights=tuple(math.prod(weight.shape) for weight in weights),
        target=target,
        of=of,
        granularity=rule.granularity,
        cuts=tuple(cut for member in divided for cut in member.cuts),
        spans=tuple(len(member.weights) for member in owned) if isinstance(unit, Head) else (),
        ties=ties,
        costs=costs,
        floors=tuple(
            n if m.bound else max(_floor(rule, n), floors[i].total if floors else 0)
            for i, (m, n) in enumerate(zip(owned, sizes))
        ),
        filter_floors=floors,
        ceilings=tuple(n if m.bound else _ceiling(rule.ceiling, n) for m, n in zip(owned, sizes))
        if rule.ceiling
        else (),
        hardware=tuple(tensor_core_obstacle(w, pattern) for w in weights) if pattern else (),
        score=target.score_for(rule.score).in_steps(run),
        schedule=rule.schedule.in_steps(run),
        freeze=None if rule.freeze is None else run.steps(rule.freeze).step,
        **_effects(rule, run),
    )
    _check_budget(rule, group, report)
    warn_of_bound(rule, group, report)
    targets = None
    if any(m.bound for m in owned) and not (target.one_budget or target.divides):
        targets = tuple(0.0 if m.bound else group.sparsity for m in owned)
    elif proportions := target.proportions([[w.shape for w in m.weights] for m in owned]):
        targets = _divided(proportions, group)
    else:
        targets = _own_shares(rule, group, report)
    if targets is not None:
        group = group.model_copy(update={"targets": targets})
    _check_time(rule, group, run.num_steps, report)
    return group


def put_before(rule: r.PruneRule, group: p.Group, first: p.Group, report: Diagnostics) -> p.Group:
    """The group, of what `first` leaves of its weights, by one score; E304 where floors keep more
    than that."""
    fields = {name: getattr(first, name) for name in p.Stage.model_fields}
    fields["score"] = group.score
    both = group.model_copy(update={"before": p.Stage(**fields)})
    end = reached_at(both)
    sizes, floors, costs = sizes_at(both, end), floors_at(both, end), unit_costs(both)
    keeps = [whole_units(size * (1 - group.sparsity)) for size in sizes]
    if group.one_budget:
        size, least = (
            sum(n * cost for n, cost in zip(counts, costs, strict=True))
            for counts in (sizes, floors)
        )
        rows = [(whole_units(size * (1 - group.sparsity)), least)]
    else:
        rows = [*zip(keeps, floors, strict=True)]
    low = next(((keep, least) for keep, least in rows if keep < least), None)
    if low is not None:
        report.add(
            "E304",
            f"{percent(group.sparsity)} of what `before` leaves is {low[0]:,}, the floors keep "
            f"{low[1]:,}",
            rule.at("floor", "target"),
            help="lower the floor or one of the targets",
        )
    return both


def _effects(rule: r.PruneRule, run: RunLength) -> dict[str, Any]:
    """Fields of p.Group by name."""
    if isinstance(rule.refresh, tuple):
        moments = tuple(sorted({run.steps(time).step for time in rule.refresh}))
        refresh = max(run.num_steps, 1)
    else:
        moments, refresh = (), run.steps(rule.refresh, least=1).step
    return {
        "refresh": refresh,
        "moments": moments,
        "forget": rule.forget,
        "reserve": rule.reserve.fraction if rule.reserve else 0.0,
        "penalties": tuple(word.in_steps(run) for word in rule.penalty),
        "param": rule.param and rule.param.in_steps(run),
        "regrow": rule.regrow and rule.regrow.in_steps(run),
    }


# -- bounds -----------------------------------------------------------------------------------


def _divided(proportions: tuple[float, ...], group: p.Group) -> tuple[float, ...]:
    """The share of each member that is pruned in the end."""
    costs, ceilings = unit_costs(group), group.ceilings or num_units(group)
    sizes, least, most = (
        [number * cost for number, cost in zip(counts, costs, strict=True)]
        for counts in (num_units(group), group.floors, ceilings)
    )
    densities = share_out(proportions, sizes, sum(sizes) * (1 - group.sparsity), least, most)
    return tuple(1 - density for density in densities)


def _own_shares(rule: r.PruneRule, group: p.Group, report: Diagnostics) -> tuple[float, ...] | None:
    """The shares by facts that only the target knows; E318 if they do not fit these layers."""
    span = rule.at("target")
    sizes = num_units(group)
    of = Divided(
        unit=group.unit,
        parameters=group.parameters,
        sizes=sizes,
        floors=group.floors,
        ceilings=group.ceilings or sizes,
        folder=span.source.folder or Path(),
    )
    try:
        return group.target.shares(of)
    except Unfit as error:
        report.add("E318", error.message, span, label=error.label, help=error.help)
        return None


def _fitted(
    rule: r.PruneRule,
    target: Target,
    owned: Sequence[Member],
    sizes: Sequence[int],
    costs: Sequence[int],
    report: Diagnostics,
) -> Target | None:
    """The target with the sparsity that follows from its layers; E318, or None."""
    span = rule.at("target")
    if any(len(member.weights) > 1 for member in owned):
        report.add(
            "E318",
            f"`{target.called}` sets single layers, and units of this rule lie in several",
            span,
            help="`granularity = filter(ties = none)` unties filters",
        )
        return None
    of = Divided(
        unit=rule.granularity,
        parameters=tuple(member.weights[0].name for member in owned),
        sizes=tuple(sizes),
        floors=(),
        ceilings=(),
        folder=span.source.folder or Path(),
        costs=tuple(costs) or (1,) * len(sizes),
    )
    try:
        fitted = target.fitted(of)
    except Unfit as error:
        report.add("E318", error.message, span, label=error.label, help=error.help)
        return None
    fault = rule.schedule.fault(fitted.sparsity)
    if fault is not None:
        report.add("E318", fault[0], rule.at("schedule"), help=fault[1])
    return fitted


def _floor(rule: r.PruneRule, size: int) -> int:
    if rule.floor is None:
        return min(DEFAULT_FLOOR, size)
    return max(math.ceil(size * rule.floor.fraction - 1e-9), DEFAULT_FLOOR)


def _ceiling(ceiling: Percent, size: int) -> int:
    return max(whole_units(size * ceiling.fraction), DEFAULT_FLOOR)


# -- time --------------------------------------------------------------------------------------


def _check_budget(rule: r.PruneRule, group: p.Group, report: Diagnostics) -> None:
    """E304, once for the rule."""
    noun, target = counted(group, many=False), percent(round(group.sparsity, 6))
    sizes, costs = num_units(group), unit_costs(group)
    if group.ties and all(tie.bound for tie in group.ties):
        return  # warn_of_bound
    ceilings = group.ceilings or sizes
    if group.one_budget or group.target.divides:
        least, most = (
            sum(number * cost for number, cost in zip(counts, costs, strict=True))
            for counts in (group.floors, ceilings)
        )
        budgets = [(count(budget_size(group), noun), budget_size(group), least, most)]
    else:
        names = [own[0] for own in members(group)]
        bound = [bool(tie.bound) for tie in group.ties] or [False] * len(names)
        rows = zip(names, sizes, group.floors, ceilings, costs, bound, strict=True)
        budgets = [
            (f"`{name}` ({count(size * cost, noun)})", size * cost, least * cost, most * cost)
            for name, size, least, most, cost, stays in rows
            if not stays
        ]
    wrong = []
    for what, size, least, most in budgets:
        keeps = whole_units(size * (1 - group.sparsity))
        leaves = f"{what} leaves {count(keeps, noun)}"
        if keeps < least:
            wrong.append((f"{leaves}, the floors keep {least:,}", True))
        elif keeps > most:
            wrong.append((f"{leaves}, the ceilings allow {most:,}", False))
    if wrong:
        fact, is_floor = wrong[0]
        more = f", likewise in {count(len(wrong) - 1, 'more layer')}" if len(wrong) > 1 else ""
        report.add(
            "E304",
            f"{target} of {fact}{more}",
            rule.at(*(("filter_floor", "floor") if is_floor else ("ceiling",)), "target"),
            help=(
                "lower the floor or the target" if is_floor else "raise the ceiling or the target"
            )
            + ("; `granularity = filter(ties = none)` unties filters" if group.ties else ""),
        )


def _check_time(rule: r.PruneRule, group: p.Group, num_steps: int, report: Diagnostics) -> None:
    reached = reached_at(group)
    fault = group.schedule.fault_in_steps()
    if fault is not None:
        report.add("E305", fault[0], rule.at("schedule"), help=fault[1])
    elif reached >= num_steps:
        report.add(
            "E305",
            f"the target is reached at step {reached:,}, the run has {num_steps:,}",
            rule.at("schedule"),
            label="no step would train at the requested sparsity",
        )
    elif group.freeze is not None and group.freeze < reached:
        report.add(
            "E305",
            f"masks freeze at step {group.freeze:,}, before the target is reached at {reached:,}",
            rule.at("freeze"),
        )


# -- bounds of several layers ----------------------------------------------------------------------


def bind_group(
    rule: r.PruneRule, group: p.Group, selection: Selection, report: Diagnostics
) -> p.Group:
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
    bound: r.BoundRule,
    group: p.Group,
    taken: dict[int, str],
    selection: Selection,
    report: Diagnostics,
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
            f"{noun}s of different layers cost different numbers of {counted(group)}",
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


# -- proportions -----------------------------------------------------------------------------------


def share_out(
    weights: Sequence[float],
    sizes: Sequence[int],
    budget: float,
    floors: Sequence[int],
    ceilings: Sequence[int],
) -> tuple[float, ...]:
    """Densities in proportion to `weights`, within the bounds, that together keep the budget.

        d_l = min(max(eps * weights_l, floor_l / n_l), ceiling_l / n_l),  sum n_l * d_l = budget

    What is kept grows with eps in straight pieces that end where a layer meets a bound, so eps is
    solved for exactly in the piece that the budget lies in. At most all ceilings, at least all
    floors are kept, whatever the budget.
    """
    rows = [
        _Row(n, weight, floor / n, ceiling / n)
        for n, weight, floor, ceiling in zip(sizes, weights, floors, ceilings, strict=True)
    ]

    def kept(eps: float) -> float:
        return math.fsum(row.size * row.density(eps) for row in rows)

    ends = sorted({0.0} | {end for row in rows for end in (row.starts, row.stops)})
    start = ends[max(bisect_right(ends, budget, key=kept) - 1, 0)]
    free = [row for row in rows if row.starts <= start < row.stops]
    rate = math.fsum(row.size * row.weight for row in free)
    eps = start + (max(budget - kept(start), 0.0) / rate if rate else 0.0)
    return tuple(row.density(eps) for row in rows)


class _Row(NamedTuple):
    """One layer: its density follows eps between `starts` and `stops`."""

    size: int
    weight: float
    low: float
    high: float

    @property
    def starts(self) -> float:
        return self.low / self.weight

    @property
    def stops(self) -> float:
        return self.high / self.weight

    def density(self, eps: float) -> float:
        if eps <= self.starts:
            return self.low
        return self.high if eps >= self.stops else eps * self.weight
