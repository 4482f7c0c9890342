"""Compute the masks of one group at one step.

In:   a Group of the Plan, the scores of its weights, a step.
Out:  boolean masks in the shapes of the weights, True = kept.
Not:  no weights; dual.py stores the masks.

Where several processes each hold some rows of every weight, they exchange sums over units, counts
and digits of scores (masking/placement.py, masking/select.py), and each computes its rows of the
same masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor

from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.masking.score import without_sign
from dcil_dsl.masking.select import Across, keep_top
from dcil_dsl.masking.ties import places, spread_ties, sum_ties
from dcil_dsl.masking.units import highest_of_units, keep_pattern, mean_in_units
from dcil_dsl.plan.group import members, unit_costs, weights_of_unit
from dcil_dsl.plan.plan import Group, Stage
from dcil_dsl.plan.schedule import bounds_at, ceilings_at, floors_at, keeps_at, limit_at
from dcil_dsl.words.granularity import Pattern, Single


def make_masks(
    group: Stage,
    scores: Sequence[Tensor],
    step: int,
    keeps: tuple[int, ...] | None = None,
    placement: Placement = ALL_ROWS,
) -> list[Tensor]:
    """The masks of group.parameters; `scores` have their order and shapes.

    keeps      the budgets instead of those at `step`; then without ceilings and bounds, as for the
               kept weights and the reserve together
    placement  the rows of the weights to which scores and masks belong
    """
    if isinstance(group, Group) and group.before is not None:
        return _of_what_is_left(group, group.before, scores, step)
    if keeps is None:
        keeps = keeps_at(group, step)
    else:
        group = group.model_copy(update={"ceilings": (), "bounds": ()})
    if group.pattern is not None:
        return _patterns(group, group.pattern.m, scores, keeps, placement)
    if isinstance(group.unit, Single):
        if group.target.rescales:
            pairs = zip(group.parameters, scores, strict=True)
            scores = [placement.on_whole(name, group.target.rescaled, s) for name, s in pairs]
        always = _first_of_filters(group, scores, placement)
        return _keep(group, list(scores), keeps, step, placement.across, always)
    units = _unit_scores(group, scores, placement)
    if group.target.rescales:
        units = [group.target.rescaled(score) for score in units]
    kept = _of_weights(group, _keep(group, units, keeps, step))
    return [
        placement.spread(name, one, cut, score)
        for name, one, cut, score in zip(group.parameters, kept, group.cuts, scores, strict=True)
    ]


def _of_what_is_left(
    group: Group, before: Stage, scores: Sequence[Tensor], step: int
) -> list[Tensor]:
    """The masks of single weights among those that whole units leave.

    m = m_before * m_own,  m_own chosen among the weights with m_before = 1
    """
    own = dict(zip(group.parameters, scores, strict=True))
    wide = make_masks(before, [own[name] for name in before.parameters], step)
    first = dict(zip(before.parameters, wide, strict=True))
    masks = [first[name] for name in group.parameters]
    left = [score[mask] for score, mask in zip(scores, masks, strict=True)]
    if group.target.rescales:
        left = [group.target.rescaled(score) for score in left]
    kept = _keep(group, left, keeps_at(group, step), step)
    return [
        torch.zeros_like(mask).masked_scatter(mask, chosen)
        for mask, chosen in zip(masks, kept, strict=True)
    ]


def _of_weights(group: Stage, kept: Sequence[Tensor]) -> list[Tensor]:
    """For each weight one boolean per unit, from those of the members."""
    if group.ties:
        return spread_ties(kept, places(group.ties, group.parameters, kept[0].device))
    return [one for one, names in zip(kept, members(group), strict=True) for _ in names]


def _patterns(
    group: Stage, m: int, scores: Sequence[Tensor], keeps: tuple[int, ...], placement: Placement
) -> list[Tensor]:
    masks = []
    for name, score, cut, keep, size in zip(
        group.parameters, scores, group.cuts, keeps, group.num_weights, strict=True
    ):
        if keep == size:
            masks.append(torch.ones_like(score, dtype=torch.bool))
        else:
            own = placement.pattern_cut(name, cut, len(score))
            masks.append(keep_pattern(score, own, keep * m // size))
    return masks


def _unit_scores(group: Stage, scores: Sequence[Tensor], placement: Placement) -> list[Tensor]:
    """The mean score of each unit of each member, float64, equal on every process.

    For "l2" the mean of w^2, for "magnitude" of |w|: the filter mode of DCIL's authors. A unit may
    lie in several weights of a member, such as a head in its projections, or tied filters.
    """
    own = [
        placement.sum_units(name, score, cut, torch.float64)
        for name, score, cut in zip(group.parameters, scores, group.cuts, strict=True)
    ]
    if group.ties:
        at = places(group.ties, group.parameters, own[0].device)
        sizes = [sum(of_unit.values()) for of_unit in weights_of_unit(group)]
        tied = sum_ties(placement.totals(own), at)
        return [one / max(1, size) for one, size in zip(tied, sizes, strict=True)]
    sums = placement.totals([reduce(add, of_member) for of_member in members(group, own)])
    return [mean_in_units(*one) for one in zip(sums, members(group, group.cuts), strict=True)]


def are_halved(group: Group, step: int) -> tuple[bool, ...]:
    """For each mask of a 2:4 group, whether it has that pattern at `step` or keeps all weights."""
    is_half = group.pattern == Pattern(n=2, m=4)
    keeps = keeps_at(group, step) if is_half else ()
    return tuple(2 * keep <= size for keep, size in zip(keeps, group.num_weights, strict=False))


def _keep(
    group: Stage,
    scores: list[Tensor],
    keeps: tuple[int, ...],
    step: int,
    across: Across | None = None,
    always: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The entries that stay: one mask per member, from one tensor of scores per member.

    always  for each member the entries that stay whatever the others' scores; empty: none
    """
    limit = limit_at(group, step)
    if limit is not None:
        return _not_below(limit, scores, group.floors, across, always)
    if group.score.signed:
        scores = [without_sign(score) for score in scores]
    if group.one_budget:
        ceilings = list(ceilings_at(group, step)) if group.ceilings else None
        costs, floors = list(unit_costs(group)), list(floors_at(group, step))
        bounds = [(list(b.members), b.floor, b.ceiling) for b in bounds_at(group, step)]
        return keep_top(scores, keeps[0], floors, across, costs, ceilings, bounds, always)
    return [
        keep_top([score], keep, [floor], across, always=always[i : i + 1])[0]
        for i, (score, keep, floor) in enumerate(
            zip(scores, keeps, floors_at(group, step), strict=True)
        )
    ]


def _not_below(
    limit: float,
    scores: list[Tensor],
    floors: Sequence[int],
    across: Across | None,
    always: Sequence[Tensor],
) -> list[Tensor]:
    """The entries of no less than the limit, NaN among them, and each member's floor. A limit of 0
    keeps all."""
    masks = []
    for i, (score, floor) in enumerate(zip(scores, floors, strict=True)):
        mask = ~(score < limit) if limit else torch.ones_like(score, dtype=torch.bool)
        ranked = without_sign(score)
        masks.append(mask | keep_top([ranked], floor, [floor], across, always=always[i : i + 1])[0])
    return masks


def _first_of_filters(group: Stage, scores: Sequence[Tensor], placement: Placement) -> list[Tensor]:
    """For each weight the entries that its filters keep at least."""
    rows = zip(group.parameters, group.filter_floors, scores, strict=bool(group.filter_floors))
    return [
        placement.on_whole(name, partial(highest_of_units, cut=floor.cut, n=floor.least), score)
        for name, floor, score in rows
    ]
