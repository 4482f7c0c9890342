"""The masks of one group at one step.

In:   a Group of the Plan, a score for each of its weights, a step.
Out:  boolean masks in the weights' shapes, True = kept.
Not:  no weights; nothing is stored (dual.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcil_dsl.masking.score import lamp_scores, without_sign
from dcil_dsl.masking.select import Across, keep_top
from dcil_dsl.masking.units import keep_pattern, score_units, spread_mask
from dcil_dsl.plan.budget import members, unit_costs
from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.schedule import bounds_at, ceilings_at, keeps_at


def make_masks(
    group: Group, scores: Sequence[Tensor], step: int, keeps: tuple[int, ...] | None = None,
    across: Across | None = None,
) -> list[Tensor]:  # fmt: skip
    """What stays of each of group.parameters; `scores` are in their order and shapes.

    keeps   how much, as keeps_at has it at `step` where it is not given; what is given is more
            than is kept, and knows no ceilings
    across  where these are this process's rows of them; only single weights have masks then
    """
    if keeps is None:
        keeps = keeps_at(group, step)
    else:
        group = group.model_copy(update={"ceilings": (), "bounds": ()})
    if group.unit.kind == "nm":
        return [
            keep_pattern(score, cut, group.unit.n)
            if keep < size
            else torch.ones_like(score, dtype=torch.bool)
            for score, cut, keep, size in zip(
                scores, group.cuts, keeps, group.num_weights, strict=True
            )
        ]
    if group.unit.kind == "weight":
        return _keep(group, list(scores), keeps, step, across)
    cuts = members(group, group.cuts)
    units = [
        score_units(own, cut) for own, cut in zip(members(group, scores), cuts, strict=True)
    ]
    shapes = members(group, [score.shape for score in scores])
    kept = zip(_keep(group, units, keeps, step), cuts, shapes, strict=True)
    return [mask for one, cut, shape in kept for mask in spread_mask(one, cut, shape)]


def are_halved(group: Group, step: int) -> tuple[bool, ...]:
    """Whether each mask of a group of 2:4 is of that pattern at `step`, or keeps all there is."""
    is_half = group.unit.kind == "nm" and (group.unit.n, group.unit.m) == (2, 4)
    keeps = keeps_at(group, step) if is_half else ()
    return tuple(keep < size for keep, size in zip(keeps, group.num_weights, strict=False))


def _keep(
    group: Group, scores: list[Tensor], keeps: tuple[int, ...], step: int,
    across: Across | None = None,
) -> list[Tensor]:  # fmt: skip
    """Which entries stay, scores and masks a member each."""
    if group.shared_by == "lamp":
        scores = [lamp_scores(score) for score in scores]
    if group.score.kind in ("movement", "outside"):
        scores = [without_sign(score) for score in scores]
    if group.allocation == "global":
        ceilings = list(ceilings_at(group, step)) if group.ceilings else None
        costs, floors = list(unit_costs(group)), list(group.floors)
        bounds = [(list(b.members), b.floor, b.ceiling) for b in bounds_at(group, step)]
        return keep_top(scores, keeps[0], floors, across, costs, ceilings, bounds)
    return [
        keep_top([score], keep, [floor], across)[0]
        for score, keep, floor in zip(scores, keeps, group.floors, strict=True)
    ]
