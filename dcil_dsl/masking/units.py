"""Weights that stay or go together: filters, blocks, heads, the groups of a 2:4 pattern.

In:   weights, scores or masks in the weights' own shapes, and how each falls into units.
Out:  one score or one truth a unit; the mask of a weight from the mask of its units.
Not:  which units stay (select.py), but for N:M, where each group of m decides by itself.

A cut views a weight in `shape`; a unit is one index of the dimensions `units` of that view, and
all of the others. The filters of a convolution: shape (O, I * kh * kw), units (0,).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor


class Cut(Protocol):
    shape: tuple[int, ...]
    units: tuple[int, ...]
    num_units: int


@torch.no_grad()
def score_units(scores: Sequence[Tensor], cuts: Sequence[Cut]) -> Tensor:
    """The mean score of the weights of each unit, (number of units,) in float64.

    With "l2" the mean of w^2, with "magnitude" of |w|: the authors' filter mode. The scores are
    those of all weights that the units lie in, whose sums are taken together.

    float64, because sums of float32 depend on their order, and with it on the device.
    """
    sums = sum(sum_of_units(score, cut) for score, cut in zip(scores, cuts, strict=True))
    return sums / (sum(score.numel() for score in scores) / len(sums))


@torch.no_grad()
def sum_of_units(score: Tensor, cut: Cut) -> Tensor:
    """The summed score of the weights of each unit, (number of units,) in float64."""
    return _rows(score, cut).sum(1, dtype=torch.float64)


def spread_mask(kept: Tensor, cuts: Sequence[Cut], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Masks of weights of these shapes, from one truth a unit."""
    masks = []
    for cut, shape in zip(cuts, shapes, strict=True):
        across = [size if i in cut.units else 1 for i, size in enumerate(cut.shape)]
        masks.append(kept.view(across).expand(cut.shape).reshape(tuple(shape)))
    return masks


@torch.no_grad()
def keep_pattern(score: Tensor, cut: Cut, n: int) -> Tensor:
    """The n highest of each group of m, ties to the earlier; NaN counts as the highest.

    The groups are the units of the cut, so that its one other dimension is m long.
    Zhou et al. 2021, arXiv:2102.04010, section 3.
    """
    (along,) = _inside(cut)
    order = score.reshape(cut.shape).argsort(dim=along, descending=True, stable=True)
    mask = torch.zeros(cut.shape, dtype=torch.bool, device=score.device)
    mask.scatter_(along, order.narrow(along, 0, n), True)
    return mask.view(score.shape)


def num_in_unit(truth: Tensor, cut: Cut) -> Tensor:
    """How many of each unit's entries of one weight are true, (number of units,)."""
    return _rows(truth, cut).sum(1)


def _rows(values: Tensor, cut: Cut) -> Tensor:
    """(number of units, weights of a unit)"""
    inside = _inside(cut)
    size = prod(cut.shape[i] for i in inside)
    return values.reshape(cut.shape).permute(*cut.units, *inside).reshape(cut.num_units, size)


def _inside(cut: Cut) -> tuple[int, ...]:
    return tuple(i for i in range(len(cut.shape)) if i not in cut.units)
