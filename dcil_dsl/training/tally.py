"""What is kept, counted as the budgets count it.

In:   a Group of the Plan, or a Promise of an export, how much it may keep, and truths in the
      shapes of its weights: a mask, or whether a weight is not zero.
Out:  for each budget what is kept of it; units that are not whole, patterns that do not hold.
Not:  no judgement: what is asked of masks (metrics.py) is not what is asked of a file (verify.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dcil_dsl.masking.units import any_in_unit, num_in_pattern, spread_mask
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


def tally_group(group: Group, keeps: tuple[int, ...], truths: Mapping[str, Tensor]) -> Tally:
    """Count every budget of a group. A unit is kept where anything true is in it."""
    units = tuple(_num_kept(group, names, cuts, truths) for names, cuts in _members(group))
    if group.allocation == "global":
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


def num_torn(group: Group, truths: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each weight with units of more than one weight: how many truths differ within a unit."""
    torn = {}
    for names, cuts in _members(group):
        if group.unit.kind in ("weight", "nm"):
            continue
        own = [truths[name] for name in names]
        whole = spread_mask(any_in_unit(own, cuts), cuts, [truth.shape for truth in own])
        torn |= {n: int((a != b).sum()) for n, a, b in zip(names, own, whole, strict=True)}
    return torn


def pattern_counts(group: Group, truths: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each weight of an N:M group, how many are true in each of its groups of m."""
    return {
        name: num_in_pattern(truths[name], cut)
        for name, cut in zip(group.parameters, group.cuts, strict=True)
    }


def _members(group: Group):
    cuts = group.cuts or (None,) * len(group.parameters)
    return zip(members(group), members(group, cuts), strict=True)


def _num_kept(group: Group, names, cuts, truths: Mapping[str, Tensor]) -> int:
    if group.unit.kind in ("weight", "nm"):
        return int(truths[names[0]].sum())
    return int(any_in_unit([truths[name] for name in names], cuts).sum())
