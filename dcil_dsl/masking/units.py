"""Units of weights that are pruned together: filters, blocks, heads, the groups of an N:M pattern.

In:   scores or masks in the shapes of the weights, and the cut of each weight into units.
Out:  one score a unit; the mask of a weight from the mask of its units; N:M masks.
Not:  which units stay (select.py).

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
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def units(self) -> tuple[int, ...]: ...

    @property
    def num_units(self) -> int: ...


@torch.no_grad()
def score_units(scores: Sequence[Tensor], cuts: Sequence[Cut]) -> Tensor:
    """The mean score of the weights of each unit, (number of units,) in float64.

    For "l2" the mean of w^2, for "magnitude" of |w|: the filter mode of DCIL's authors. A unit may
    lie in several weights, such as a head in its projections: `scores` has one tensor a weight.

    float64, because sums of float32 depend on their order, and so on the device.
    """
    of_weights = [
        _rows(score, cut).sum(1, dtype=torch.float64)
        for score, cut in zip(scores, cuts, strict=True)
    ]
    sums = of_weights[0]
    for more in of_weights[1:]:
        sums = sums + more
    return sums / (sum(score.numel() for score in scores) / len(sums))


def spread_mask(kept: Tensor, cuts: Sequence[Cut], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Masks of weights of these shapes, from one boolean a unit."""
    masks = []
    for cut, shape in zip(cuts, shapes, strict=True):
        across = [size if i in cut.units else 1 for i, size in enumerate(cut.shape)]
        masks.append(kept.view(across).expand(cut.shape).reshape(tuple(shape)))
    return masks


@torch.no_grad()
def keep_pattern(score: Tensor, cut: Cut, n: int) -> Tensor:
    """A mask that keeps the n highest of each group of m, ties to the earlier; NaN is the highest.

    The groups are the units of the cut; its only other dimension has m entries.
    Zhou et al. 2021, arXiv:2102.04010, section 3.
    """
    (along,) = _inside(cut)
    order = score.reshape(cut.shape).argsort(dim=along, descending=True, stable=True)
    mask = torch.zeros(cut.shape, dtype=torch.bool, device=score.device)
    mask.scatter_(along, order.narrow(along, 0, n), True)
    return mask.view(score.shape)


def num_in_unit(mask: Tensor, cut: Cut) -> Tensor:
    """The number of true entries in each unit of one weight, (number of units,)."""
    return _rows(mask, cut).sum(1)


def _rows(values: Tensor, cut: Cut) -> Tensor:
    """(number of units, weights of a unit)"""
    inside = _inside(cut)
    size = prod(cut.shape[i] for i in inside)
    return values.reshape(cut.shape).permute(*cut.units, *inside).reshape(cut.num_units, size)


def _inside(cut: Cut) -> tuple[int, ...]:
    return tuple(i for i in range(len(cut.shape)) if i not in cut.units)
