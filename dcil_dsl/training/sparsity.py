"""What is kept, counted as the budgets count it.

In:   a Group of the Plan, or a Promise of an export, how much it may keep, and truths in the
      shapes of its weights: a mask, or whether a weight is not zero.
Out:  how many truths each unit holds; for each budget what is kept of it; units that are not whole,
      patterns that do not hold.
Not:  no judgement: what is asked of masks (metrics.py) is not what is asked of a file (verify.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcil_dsl.masking.rows import Parts, num_in_pattern_rows, sum_units
from dcil_dsl.masking.ties import places, sum_ties
from dcil_dsl.masking.units import num_in_unit
from dcil_dsl.plan.budget import (
    budget_size,
    counted,
    member_name,
    members,
    num_units,
    unit_costs,
    weights_of_unit,
)
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
    group: Group, truths: Mapping[str, Tensor], parts: Parts | None = None
) -> dict[str, Tensor]:
    """Of each weight, how many entries of each unit are true, (number of units,) in int64.

    One number in all where units are single weights, or those of a pattern. parts: where the truths
    are this process's rows; the counts are of all rows.
    """
    if group.unit.single:
        counts = {name: truths[name].sum().view(1) for name in group.parameters}
    elif parts is None:
        pairs = zip(group.parameters, group.cuts, strict=True)
        counts = {name: num_in_unit(truths[name], cut) for name, cut in pairs}
    else:
        counts = {
            name: sum_units(truths[name], cut, parts.rows[name], torch.int64)
            for name, cut in zip(group.parameters, group.cuts, strict=True)
        }
    if parts is None:
        return counts
    together = parts.across.sum(torch.cat([*counts.values()]))
    sizes = [len(count) for count in counts.values()]
    return dict(zip(counts, together.split(sizes), strict=True))


def tally_group(group: Group, keeps: tuple[int, ...], counts: Mapping[str, Tensor]) -> Tally:
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


def pattern_counts(
    group: Group, truths: Mapping[str, Tensor], parts: Parts | None = None
) -> dict[str, Tensor]:
    """Of each weight of an N:M group, how many are true in each of its groups of m.

    parts: where the truths are this process's rows; the groups are those in them.
    """
    if parts is None:
        pairs = zip(group.parameters, group.cuts, strict=True)
        return {name: num_in_unit(truths[name], cut) for name, cut in pairs}
    return {
        name: num_in_pattern_rows(truths[name], cut, parts.rows[name])
        for name, cut in zip(group.parameters, group.cuts, strict=True)
    }


def _num_kept(group: Group, counts: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The units of each member that are kept; those of a pattern are single weights."""
    if group.unit.single:
        return tuple(int(counts[name].sum()) for name in group.parameters)
    kept = [counts[name] > 0 for name in group.parameters]
    if group.ties:
        at = places(group.ties, group.parameters, kept[0].device)
        return tuple(int((sums > 0).sum()) for sums in sum_ties(kept, at))
    return tuple(int(torch.stack(own).any(0).sum()) for own in members(group, kept))
