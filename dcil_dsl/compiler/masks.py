"""The masks of one group at one step.

In:   a Group of the Plan, a score for each of its weights, a step.
Out:  boolean masks in the weights' shapes, True = kept.
Not:  no weights; nothing is stored (dual.py).

Where several processes have some rows of each weight, sums over units, counts and digits of scores
are exchanged (masking/placement.py, select.py): each makes its rows of the masks of one process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.masking.score import without_sign
from dcil_dsl.masking.select import Across, keep_top
from dcil_dsl.masking.units import keep_pattern, mean_in_units
from dcil_dsl.plan.budget import members, unit_costs
from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.schedule import bounds_at, ceilings_at, keeps_at
from dcil_dsl.words.granularity import Pattern, Single


def make_masks(
    group: Group,
    scores: Sequence[Tensor],
    step: int,
    keeps: tuple[int, ...] | None = None,
    placement: Placement = ALL_ROWS,
) -> list[Tensor]:
    """The masks of group.parameters; `scores` are in their order and shapes.

    keeps   how much is kept, as keeps_at has it at `step` where it is not given; what is given is
            more than is kept, and knows no ceilings
    placement  which rows of the weights the scores and masks are
    """
    if keeps is None:
        keeps = keeps_at(group, step)
    else:
        group = group.model_copy(update={"ceilings": (), "bounds": ()})
    if group.pattern is not None:
        return _patterns(group, scores, keeps, placement)
    if isinstance(group.unit, Single):
        if group.target.rescales:
            pairs = zip(group.parameters, scores, strict=True)
            scores = [placement.on_whole(name, group.target.rescaled, s) for name, s in pairs]
        return _keep(group, list(scores), keeps, step, placement.across)
    units = _unit_scores(group, scores, placement)
    if group.target.rescales:
        units = [group.target.rescaled(score) for score in units]
    kept = zip(_keep(group, units, keeps, step), members(group, group.cuts), strict=True)
    of_weights = [(one, cut) for one, cuts in kept for cut in cuts]
    return [
        placement.spread(name, one, cut, score)
        for (one, cut), name, score in zip(of_weights, group.parameters, scores, strict=True)
    ]


def _patterns(
    group: Group, scores: Sequence[Tensor], keeps: tuple[int, ...], placement: Placement
) -> list[Tensor]:
    masks, n = [], group.pattern.n
    for name, score, cut, keep, size in zip(
        group.parameters, scores, group.cuts, keeps, group.num_weights, strict=True
    ):
        if keep == size:
            masks.append(torch.ones_like(score, dtype=torch.bool))
        else:
            masks.append(keep_pattern(score, placement.pattern_cut(name, cut, len(score)), n))
    return masks


def _unit_scores(group: Group, scores: Sequence[Tensor], placement: Placement) -> list[Tensor]:
    """The mean score of each unit of each member, float64, on every process alike.

    With "l2" the mean of w^2, with "magnitude" of |w|: the authors' filter mode. A member's sums
    are over all weights that its units lie in.
    """
    own = [
        placement.sum_units(name, score, cut, torch.float64)
        for name, score, cut in zip(group.parameters, scores, group.cuts, strict=True)
    ]
    sums = placement.totals([sum(of_weights) for of_weights in members(group, own)])
    return [mean_in_units(*one) for one in zip(sums, members(group, group.cuts), strict=True)]


def are_halved(group: Group, step: int) -> tuple[bool, ...]:
    """Whether each mask of a group of 2:4 is of that pattern at `step`, or keeps all there is."""
    is_half = group.pattern == Pattern(n=2, m=4)
    keeps = keeps_at(group, step) if is_half else ()
    return tuple(keep < size for keep, size in zip(keeps, group.num_weights, strict=False))


def _keep(
    group: Group,
    scores: list[Tensor],
    keeps: tuple[int, ...],
    step: int,
    across: Across | None = None,
) -> list[Tensor]:
    """Which entries stay, scores and masks a member each."""
    if group.score.signed:
        scores = [without_sign(score) for score in scores]
    if group.one_budget:
        ceilings = list(ceilings_at(group, step)) if group.ceilings else None
        costs, floors = list(unit_costs(group)), list(group.floors)
        bounds = [(list(b.members), b.floor, b.ceiling) for b in bounds_at(group, step)]
        return keep_top(scores, keeps[0], floors, across, costs, ceilings, bounds)
    return [
        keep_top([score], keep, [floor], across)[0]
        for score, keep, floor in zip(scores, keeps, group.floors, strict=True)
    ]
