"""What is kept, counted as the budgets count it.

In:   a Group of the Plan, or a Promise of an export, how much it may keep, and boolean tensors in
      the shapes of its weights: a mask, or whether a weight is nonzero.
Out:  how many entries of each unit are true; for each budget what is kept of it; units that are
      not whole, patterns that do not hold.
Not:  no judgement: what is asked of masks (metrics.py) is not what is asked of a file (verify.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.masking.units import sum_in_units
from dcil_dsl.plan.budget import budget_size, counted, members, num_units, unit_costs
from dcil_dsl.plan.plan import Group


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
    group: Group, nonzero: Mapping[str, Tensor], placement: Placement = ALL_ROWS
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


def tally_group(group: Group, keeps: tuple[int, ...], counts: Mapping[str, Tensor]) -> Tally:
    """What is kept of every budget, by count_units: a unit is where anything true is in it."""
    units = tuple(_num_kept(group, names, counts) for names in members(group))
    if group.one_budget:
        costs = unit_costs(group)
        spent = sum(count * cost for count, cost in zip(units, costs, strict=True))
        names = group.parameters
        what = f"the {len(names)} layers of {group.rule}" if len(names) > 1 else names[0]
        return Tally((Budget(what, counted(group), budget_size(group), keeps[0], spent),), units)
    noun, sizes = counted(group), num_units(group)
    whose = [" and ".join(own) for own in members(group)]
    return Tally(
        tuple(
            Budget(what, noun, size, allowed, kept)
            for what, size, allowed, kept in zip(whose, sizes, keeps, units, strict=True)
        ),
        units,
    )


def num_torn(group: Group, counts: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each weight with units of more than one weight: how many entries of kept units are not
    true, by count_units."""
    if group.unit.single:
        return {}
    torn = {}
    for names, cuts in zip(members(group), members(group, group.cuts), strict=True):
        num_kept = _num_kept(group, names, counts)
        for name, cut in zip(names, cuts, strict=True):
            size = prod(cut.shape) // cut.num_units
            torn[name] = num_kept * size - int(counts[name].sum())
    return torn


def pattern_counts(
    group: Group, nonzero: Mapping[str, Tensor], placement: Placement = ALL_ROWS
) -> dict[str, Tensor]:
    """Of each weight of an N:M group, how many are true in each of its groups of m.

    placement: which rows of the weights the tensors are; the groups are those in them.
    """
    counts = {}
    for name, cut in zip(group.parameters, group.cuts, strict=True):
        own = placement.pattern_cut(name, cut, len(nonzero[name]))
        counts[name] = sum_in_units(nonzero[name], own, torch.int64)
    return counts


def _num_kept(group: Group, names: tuple[str, ...], counts: Mapping[str, Tensor]) -> int:
    """The units of a member that are kept; those of a pattern are single weights."""
    if group.unit.single:
        return int(counts[names[0]].sum())
    return int(torch.stack([counts[name] > 0 for name in names]).any(0).sum())
