"""The sparsity of masks, compared with the requested one, and of what the deployed path sees.

In:   masks, or whether weights are nonzero, with the plan's groups.
Out:  counts and fractions; SparsityError where masks miss the sparsity of the plan.
Not:  nothing is printed or stored here; exporting/verify.py judges files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.masking.ties import places, sum_ties
from dcil_dsl.masking.units import sum_in_units
from dcil_dsl.plan.group import (
    Budgeted,
    budget_size,
    counted,
    member_name,
    members,
    num_units,
    unit_costs,
    weights_of_unit,
)
from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.schedule import (
    bounds_at,
    ceilings_at,
    floors_at,
    keeps_at,
    last_refresh,
    sparsity_at,
)


class SparsityError(Exception):
    """The result misses the sparsity of the recipe: exit status 1."""


@dataclass(frozen=True)
class RuleSparsity:
    """One rule: the requested and the kept amount, of `size`, all in the unit `counts`.

    is_result  whether nothing was requested: `asked` is then what was measured
    """

    rule: str
    counts: str
    asked: float
    size: int
    kept: int
    is_result: bool = False

    @property
    def pruned(self) -> float:
        return 1 - self.kept / self.size if self.size else 0.0


@dataclass(frozen=True)
class Sparsity:
    """Over all the groups of a plan together, as fractions and counts of weights.

    What is kept, measured and pruned is what the deployed path sees: on a `full` path everything.

    asked       of what the budgets count, by the schedule; of a rule whose sparsity is a result,
                what was measured
    measured    of the weights
    pruned      of what the budgets count: to be compared with what was asked
    counts      what that is: "weights", "filters", or several of them
    at_floor    the layers of shared budgets that have nothing above their floor
    at_ceiling  those that keep all that their ceiling allows
    rules       each rule alone, in its own unit
    """

    asked: float
    measured: float
    num_kept: int
    num_weights: int
    pruned: float = 0.0
    counts: str = "weights"
    at_floor: tuple[str, ...] = ()
    at_ceiling: tuple[str, ...] = ()
    rules: tuple[RuleSparsity, ...] = ()


def masks_step(num_done: int) -> int:
    """The step whose masks are in force after `num_done` updates: the last one trained.

    Masks change before a step and never after the last one, so that every stored mask was trained
    with; a ramp that would end with the run is E305 of plan/allocate.py.
    """
    return max(num_done - 1, 0)


def check_sparsity(dual: Dual, step: int) -> Sparsity:
    """Compare the masks in force at `step` with the plan, group by group, to the unit.

    Raises SparsityError with every group (every layer of a uniform one) that differs, and every
    layer with a unit that is kept in part or a group of m that does not keep n.
    """
    asked, pruned, num_kept, num_weights = 0.0, 0.0, 0, 0
    wrong: list[str] = []
    at_floor: list[str] = []
    at_ceiling: list[str] = []
    rules: list[RuleSparsity] = []
    groups, view = dual.plan.groups, dual.plan.deployed_view
    for group in groups:
        moved = last_refresh(group, step)
        keeps, masks = keeps_at(group, moved), {name: dual.masks[name] for name in group.parameters}
        counts = count_units(group, masks, dual.placement)
        tally = tally_group(group, keeps, counts)
        spare = _spare(group, tally.units, moved)
        for budget in () if group.target.is_result else tally.budgets:
            left = budget.allowed - budget.kept
            if not 0 <= left < spare:
                wrong.append(
                    f"{budget.what}: {budget.allowed:,} of {budget.size:,} {budget.counts} asked, "
                    f"{budget.kept:,} kept"
                )
        wrong += [
            f"{name}: "
            f"{count(number, 'weight of kept units is', 'weights of kept units are')} pruned"
            for name, number in num_torn(group, counts).items()
            if number
        ]
        if group.pattern is not None:
            patterns = pattern_counts(group, masks, dual.placement)
            wrong += _broken(group, keeps, patterns, dual.placement)
        wrong += _out_of_bounds(group, tally.units, moved)
        wrong += _too_many_before(group, masks, moved, dual.placement)
        wrong += [
            f"{name}: {short_filters(missing, least)}"
            for name, (missing, least) in below_filter_floors(group, masks, dual.placement).items()
        ]
        floor, ceiling = _bounds_that_bind(group, tally.units, moved)
        at_floor, at_ceiling = at_floor + floor, at_ceiling + ceiling
        seen = {name: view.left(mask) for name, mask in masks.items()}
        if any(seen[name] is not mask for name, mask in masks.items()):
            counts = count_units(group, seen, dual.placement)
            tally = tally_group(group, keeps, counts)
        size = sum(group.num_weights)
        whole, kept = (sum(getattr(b, key) for b in tally.budgets) for key in ("size", "kept"))
        result = group.target.is_result
        share = 1 - kept / whole if result and whole else sparsity_at(group, moved)
        rule = RuleSparsity(group.rule, counted(group), share, whole, kept, result)
        rules.append(rule)
        asked, pruned = asked + rule.asked * size, pruned + rule.pruned * size
        num_kept += sum(int(count.sum()) for count in counts.values())
        num_weights += size
    if wrong:
        fact = f"sparsity at step {step} is not what the recipe asks"
        raise SparsityError(f"{fact}: {'; '.join(wrong)}")
    if not num_weights:
        return Sparsity(0.0, 0.0, 0, 0)
    asked = round(asked / num_weights, 12)  # 0.9, where one group sums up to 0.8999999999999999
    measured = 1 - num_kept / num_weights
    nouns = " and ".join(dict.fromkeys(counted(group) for group in groups))
    if nouns != "weights":
        pruned = round(pruned / num_weights, 12)
    else:
        pruned = measured
    return Sparsity(
        asked,
        measured,
        num_kept,
        num_weights,
        pruned,
        nouns,
        tuple(at_floor),
        tuple(at_ceiling),
        tuple(rules),
    )


def _too_many_before(
    group: Group, masks: Mapping[str, Tensor], step: int, placement: Placement
) -> list[str]:
    """Layers that keep weights of more whole units than are left before."""
    if group.before is None:
        return []
    keeps, counts = keeps_at(group.before, step), count_units(group.before, masks, placement)
    return [
        f"{b.what}: weights in {b.kept:,} {b.counts} kept, {b.allowed:,} of {b.size:,} asked"
        for b in tally_group(group.before, keeps, counts).budgets
        if b.kept > b.allowed
    ]


def _spare(group: Group, kept: tuple[int, ...], step: int) -> int:
    """What is left of a full budget is less than this: the cheapest unit that might be kept."""
    if not group.one_budget:
        return 1
    most = ceilings_at(group, step)
    costs = [c for c, n, limit in zip(unit_costs(group), kept, most, strict=True) if n < limit]
    return min(costs, default=1)


def _broken(
    group: Group, keeps: tuple[int, ...], counts: Mapping[str, Tensor], placement: Placement
) -> list[str]:
    """Groups of m that do not keep n, of how many each keeps."""
    assert group.pattern is not None
    m = group.pattern.m
    asked = [keep * m // size for keep, size in zip(keeps, group.num_weights, strict=True)]
    pairs = zip(counts.values(), asked, strict=True)
    (wrong,) = placement.totals([torch.stack([(kept != keep).sum() for kept, keep in pairs])])
    return [
        f"{name}: "
        f"{count(number, f'group of {m} weights does', f'groups of {m} weights do')} not keep {n}"
        for name, number, n in zip(counts, wrong.tolist(), asked, strict=True)
        if number
    ]


def _out_of_bounds(group: Group, kept: tuple[int, ...], step: int) -> list[str]:
    """Layers, or layers bound together, that keep less than their floor or more than allowed."""
    return [
        f"{name}: {count:,} kept, {low:,} to {high:,} allowed"
        for name, count, low, high, _ in _limits(group, kept, step)
        if not low <= count <= high
    ]


def _bounds_that_bind(
    group: Group, kept: tuple[int, ...], step: int
) -> tuple[list[str], list[str]]:
    """The layers of a shared budget that are left with just their floor, or their ceiling."""
    if not (group.one_budget or group.target.divides):
        return [], []
    rows = _limits(group, kept, step)
    return (
        [name for name, count, floor, _, size in rows if count == floor < size],
        [name for name, count, _, ceiling, size in rows if count == ceiling < size],
    )


def _limits(group: Group, kept: tuple[int, ...], step: int) -> list[tuple[str, int, int, int, int]]:
    """(name, kept, least, most, all) of each member and of each bound, in units."""
    names, sizes = [own[0] for own in members(group)], num_units(group)
    rows = list(zip(names, kept, floors_at(group, step), ceilings_at(group, step), sizes))
    for bound in bounds_at(group, step):
        count, size = (sum(counts[i] for i in bound.members) for counts in (kept, sizes))
        rows.append((f"within {bound.name}", count, bound.floor, bound.ceiling, size))
    return rows


# -- what is kept, counted as the budgets count it ---------------------------------------------


@dataclass(frozen=True)
class Budget:
    """One budget, in what it counts.

    what     whose it is: a weight, or "the 3 layers of x.prune:7"
    counts   "weights", "filters", "multiply-accumulates"
    """

    what: str
    counts: str
    size: int
    allowed: int
    kept: int

    @property
    def pruned(self) -> float:
        return 1 - self.kept / self.size if self.size else 0.0


@dataclass(frozen=True)
class Tally:
    """units: how many units each member keeps (a pattern's: single weights)."""

    budgets: tuple[Budget, ...]
    units: tuple[int, ...]


def count_units(
    group: Budgeted, nonzero: Mapping[str, Tensor], placement: Placement = ALL_ROWS
) -> dict[str, Tensor]:
    """Of each weight, how many entries of each unit are true, (number of units,) in int64.

    One number in all where units are single weights, or those of a pattern. placement: which rows
    of the weights the tensors are; the counts are of all rows.
    """
    if group.unit.single:
        counts = {name: nonzero[name].sum().view(1) for name in group.parameters}
    else:
        counts = {
            name: placement.sum_units(name, nonzero[name], cut, torch.int64)
            for name, cut in zip(group.parameters, group.cuts, strict=True)
        }
    return dict(zip(counts, placement.totals(list(counts.values())), strict=True))


def tally_group(group: Budgeted, keeps: tuple[int, ...], counts: Mapping[str, Tensor]) -> Tally:
    """What is kept of every budget, by count_units: a unit is where anything true is in it."""
    units = _num_kept(group, counts)
    if group.one_budget:
        costs = unit_costs(group)
        spent = sum(count * cost for count, cost in zip(units, costs, strict=True))
        names = group.parameters
        what = f"the {len(names)} layers of {group.rule}" if len(names) > 1 else names[0]
        return Tally((Budget(what, counted(group), budget_size(group), keeps[0], spent),), units)
    noun, rows = counted(group), zip(num_units(group), keeps, units, unit_costs(group), strict=True)
    return Tally(
        tuple(
            Budget(member_name(group, i), noun, size * cost, allowed * cost, kept * cost)
            for i, (size, allowed, kept, cost) in enumerate(rows)
        ),
        units,
    )


def num_torn(group: Group, counts: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each weight with units of more than one weight: how many entries of kept units are not
    true, by count_units."""
    if group.unit.single:
        return {}
    torn = {name: -int(counts[name].sum()) for name in group.parameters}
    for kept, of_unit in zip(_num_kept(group, counts), weights_of_unit(group), strict=True):
        for name, size in of_unit.items():
            torn[name] += kept * size
    return torn


def below_filter_floors(
    group: Budgeted, nonzero: Mapping[str, Tensor], placement: Placement = ALL_ROWS
) -> dict[str, tuple[Tensor, int]]:
    """Of each weight with filters below their floor: for each filter how many weights it lacks,
    and the floor."""
    floors = group.filter_floors
    if not floors:
        return {}
    counts = [
        placement.sum_units(name, nonzero[name], floor.cut, torch.int64)
        for name, floor in zip(group.parameters, floors, strict=True)
    ]
    rows = zip(group.parameters, placement.totals(counts), floors, strict=True)
    lacks = {name: ((floor.least - own).clamp(min=0), floor.least) for name, own, floor in rows}
    return {name: one for name, one in lacks.items() if one[0].any()}


def short_filters(missing: Tensor, least: int) -> str:
    """ "2 of 64 filters keep less than 3 weights"."""
    short = int((missing > 0).sum())
    return (
        f"{short:,} of {count(len(missing), 'filter')} {'keeps' if short == 1 else 'keep'} less "
        f"than {count(least, 'weight')}"
    )


def pattern_counts(
    group: Budgeted, nonzero: Mapping[str, Tensor], placement: Placement = ALL_ROWS
) -> dict[str, Tensor]:
    """Of each weight of an N:M group, how many are true in each of its groups of m.

    placement: which rows of the weights the tensors are; the groups are those in them.
    """
    counts = {}
    for name, cut in zip(group.parameters, group.cuts, strict=True):
        own = placement.pattern_cut(name, cut, len(nonzero[name]))
        counts[name] = sum_in_units(nonzero[name], own, torch.int64)
    return counts


def _num_kept(group: Budgeted, counts: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The units of each member that are kept; those of a pattern are single weights."""
    if group.unit.single:
        return tuple(int(counts[name].sum()) for name in group.parameters)
    kept = [counts[name] > 0 for name in group.parameters]
    if group.ties:
        at = places(group.ties, group.parameters, kept[0].device)
        return tuple(int((sums > 0).sum()) for sums in sum_ties(kept, at))
    return tuple(int(torch.stack(own).any(0).sum()) for own in members(group, kept))
