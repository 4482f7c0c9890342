"""The masks of one group at one step.

In:   a Group of the Plan, a score for each of its weights, a step.
Out:  boolean masks in the weights' shapes, True = kept.
Not:  no weights; nothing is stored (dual.py).

Where several processes have some rows of each weight, sums over units, counts and digits of scores
are exchanged (masking/rows.py, select.py): each makes its rows of the masks of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from dcil_dsl.masking.rows import (
    Parts,
    keep_pattern_rows,
    spread_to_rows,
    sum_units,
)
from dcil_dsl.masking.score import without_sign
from dcil_dsl.masking.select import Across, keep_top
from dcil_dsl.masking.ties import places, spread_ties, sum_ties
from dcil_dsl.masking.units import keep_pattern, score_units, spread_mask, sum_of_units
from dcil_dsl.plan.budget import members, unit_costs, weights_of_unit
from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.schedule import bounds_at, ceilings_at, keeps_at
from dcil_dsl.words.granularity import Pattern, Single


def make_masks(
    group: Group,
    scores: Sequence[Tensor],
    step: int,
    keeps: tuple[int, ...] | None = None,
    parts: Parts | None = None,
) -> list[Tensor]:
    """What stays of each of group.parameters; `scores` are in their order and shapes.

    keeps   how much, as keeps_at has it at `step` where it is not given; what is given is more
            than is kept, and knows no ceilings
    parts   where scores and masks are this process's rows of them
    """
    if keeps is None:
        keeps = keeps_at(group, step)
    else:
        group = group.model_copy(update={"ceilings": (), "bounds": ()})
    if group.pattern is not None:
        return _patterns(group, scores, keeps, parts)
    if isinstance(group.unit, Single):
        if group.target.rescales:
            scores = _rescaled(group, scores, parts)
        return _keep(group, list(scores), keeps, step, None if parts is None else parts.across)
    units = _unit_scores(group, scores, parts)
    if group.target.rescales:
        units = [group.target.rescaled(score) for score in units]
    chosen = _keep(group, units, keeps, step)
    if group.ties:
        at = places(group.ties, group.parameters, chosen[0].device)
        return _spread_filters(group, spread_ties(chosen, at), scores, parts)
    kept = zip(chosen, members(group, group.cuts), strict=True)
    if parts is None:
        shapes = members(group, [score.shape for score in scores])
        return [
            mask
            for (one, cuts), own in zip(kept, shapes, strict=True)
            for mask in spread_mask(one, cuts, own)
        ]
    of_weights = ((one, cut) for one, cuts in kept for cut in cuts)
    return [
        spread_to_rows(one, cut, parts.rows[name], len(score))
        for (one, cut), name, score in zip(of_weights, group.parameters, scores, strict=True)
    ]


def _spread_filters(
    group: Group, kept: list[Tensor], scores: Sequence[Tensor], parts: Parts | None
) -> list[Tensor]:
    """The masks of weights from a truth a filter of each."""
    rows = zip(group.parameters, kept, group.cuts, scores, strict=True)
    if parts is None:
        return [spread_mask(one, [cut], [s.shape])[0] for _, one, cut, s in rows]
    return [spread_to_rows(one, cut, parts.rows[name], len(s)) for name, one, cut, s in rows]


def _patterns(
    group: Group, scores: Sequence[Tensor], keeps: tuple[int, ...], parts: Parts | None
) -> list[Tensor]:
    masks, n = [], group.pattern.n
    for name, score, cut, keep, size in zip(
        group.parameters, scores, group.cuts, keeps, group.num_weights, strict=True
    ):
        if keep == size:
            masks.append(torch.ones_like(score, dtype=torch.bool))
        elif parts is None:
            masks.append(keep_pattern(score, cut, n))
        else:
            masks.append(keep_pattern_rows(score, cut, n, parts.rows[name]))
    return masks


def _rescaled(group: Group, scores: Sequence[Tensor], parts: Parts | None) -> list[Tensor]:
    """Of rows, one layer at a time is gathered: a score may depend on all others of its layer."""
    rescaled = group.target.rescaled
    if parts is None:
        return [rescaled(score) for score in scores]
    rows = [parts.rows[name] for name in group.parameters]
    return [own.own(rescaled(own.whole(s))) for own, s in zip(rows, scores, strict=True)]


def _unit_scores(group: Group, scores: Sequence[Tensor], parts: Parts | None) -> list[Tensor]:
    """The mean score of each unit of each member, on every process alike: one exchange in all."""
    if group.ties:
        return _tied_scores(group, scores, parts)
    cuts = members(group, group.cuts)
    if parts is None:
        pairs = zip(members(group, scores), cuts, strict=True)
        return [score_units(own, cut) for own, cut in pairs]
    own = [
        sum_units(score, cut, parts.rows[name], torch.float64)
        for name, score, cut in zip(group.parameters, scores, group.cuts, strict=True)
    ]
    sums = [sum(of_weights) for of_weights in members(group, own)]
    num_units = [len(of_units) for of_units in sums]
    sums = parts.across.sum(torch.cat(sums)).split(num_units)
    sizes = [sum(prod(cut.shape) for cut in of_weights) for of_weights in cuts]
    return [s / (size / n) for s, size, n in zip(sums, sizes, num_units, strict=True)]


def _tied_scores(group: Group, scores: Sequence[Tensor], parts: Parts | None) -> list[Tensor]:
    """The mean score of all weights of each unit, (units,) in float64 for each tie."""
    if parts is None:
        sums = [sum_of_units(s, cut) for s, cut in zip(scores, group.cuts, strict=True)]
    else:
        rows = zip(group.parameters, scores, group.cuts, strict=True)
        own = [sum_units(s, cut, parts.rows[name], torch.float64) for name, s, cut in rows]
        sums = list(parts.across.sum(torch.cat(own)).split([len(one) for one in own]))
    at = places(group.ties, group.parameters, sums[0].device)
    sizes = [sum(of_unit.values()) for of_unit in weights_of_unit(group)]
    return [s / max(1, size) for s, size in zip(sum_ties(sums, at), sizes, strict=True)]


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
