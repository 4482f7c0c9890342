"""Weights that stay or go together: filters, blocks, heads, the groups of a 2:4 pattern.

In:   weights, scores or masks in the weights' own shapes, and how each falls into units.
Out:  sums over units; the mask of a weight from the mask of its units.
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
from torch.utils.weak import WeakTensorKeyDictionary

# Of each mask: how often it had been changed, and whether it held a 2:4 pattern then.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Cut(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def units(self) -> tuple[int, ...]: ...

    @property
    def num_units(self) -> int: ...


@torch.no_grad()
def sum_in_units(values: Tensor, cut: Cut, dtype: torch.dtype) -> Tensor:
    """The sum over each unit of one weight, (number of units,).

    Of scores in float64: sums of float32 depend on their order, and with it on the device.
    """
    return _rows(values, cut).sum(1, dtype=dtype)


def mean_in_units(sums: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """The mean of each unit, of the sums over all of the weights that it lies in."""
    return sums / (sum(prod(cut.shape) for cut in cuts) / len(sums))


def spread_mask(kept: Tensor, cut: Cut, shape: Sequence[int]) -> Tensor:
    """The mask of a weight of this shape, from one boolean per unit."""
    across = [size if i in cut.units else 1 for i, size in enumerate(cut.shape)]
    return kept.view(across).expand(cut.shape).reshape(tuple(shape))


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


def holds_half(mask: Tensor) -> bool:
    """Whether each four inputs in a row of the mask (O, I) keep two at most.

    Counted once for each change that remember_half has not recorded: a host waits for it.
    """
    known = _known.get(mask)
    if known is None or known[0] != mask._version:
        counts = mask.view(mask.shape[0], -1, 4).sum(2, dtype=torch.uint8)
        remember_half(mask, bool((counts <= 2).all()))
    return _known[mask][1]


def remember_half(mask: Tensor, holds: bool) -> None:
    """What holds_half will say of the mask until it is changed."""
    _known[mask] = (mask._version, holds)


def _rows(values: Tensor, cut: Cut) -> Tensor:
    """(number of units, weights of a unit)"""
    inside = _inside(cut)
    size = prod(cut.shape[i] for i in inside)
    return values.reshape(cut.shape).permute(*cut.units, *inside).reshape(cut.num_units, size)


def _inside(cut: Cut) -> tuple[int, ...]:
    return tuple(i for i in range(len(cut.shape)) if i not in cut.units)
