"""Units of weights that are pruned together: filters, blocks, heads, the groups of an N:M pattern.

In:   scores or masks in the shapes of the weights, and the cut of each weight into units.
Out:  sums and means over units; the mask of a weight from the mask of its units; N:M masks.
Not:  which units stay (select.py).

A cut views a weight in `shape`; a unit is one index of the dimensions `units` of that view, and
all of the others. The filters of a convolution: shape (O, I * kh * kw), units (0,).
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# By mask: its version, and whether it has a 2:4 pattern in this version.
_known: MutableMapping[Tensor, tuple[int, bool]] = WeakTensorKeyDictionary()


class CutLike(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def units(self) -> tuple[int, ...]: ...

    @property
    def num_units(self) -> int: ...


@torch.no_grad()
def sum_in_units(values: Tensor, cut: CutLike, dtype: torch.dtype) -> Tensor:
    """The sum over each unit of one weight, (number of units,).

    Use float64 for scores: sums of float32 depend on their order, and so on the device.
    """
    return _rows(values, cut).sum(1, dtype=dtype)


def mean_in_units(sums: Tensor, cuts: Sequence[CutLike]) -> Tensor:
    """The mean of each unit, from the sums over all weights that it lies in."""
    return sums / (sum(prod(cut.shape) for cut in cuts) / len(sums))


def spread_mask(kept: Tensor, cut: CutLike, shape: Sequence[int]) -> Tensor:
    """The mask of a weight of this shape, from one boolean per unit."""
    across = [size if i in cut.units else 1 for i, size in enumerate(cut.shape)]
    return kept.view(across).expand(cut.shape).reshape(tuple(shape))


@torch.no_grad()
def keep_pattern(score: Tensor, cut: CutLike, n: int) -> Tensor:
    """A mask that keeps the n highest of each group of m, ties to the earlier; NaN is the highest.

    The groups are the units of the cut; its only other dimension has m entries.
    Zhou et al. 2021, arXiv:2102.04010, section 3.
    """
    (along,) = _inside(cut)
    order = score.reshape(cut.shape).argsort(dim=along, descending=True, stable=True)
    mask = torch.zeros(cut.shape, dtype=torch.bool, device=score.device)
    mask.scatter_(along, order.narrow(along, 0, n), True)
    return mask.view(score.shape)


@torch.no_grad()
def highest_of_units(score: Tensor, cut: CutLike, n: int) -> Tensor:
    """A mask of the n highest entries of each unit, ties to the earlier; NaN is the highest."""
    inside = _inside(cut)
    rows = _rows(score, cut)
    order = rows.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros(rows.shape, dtype=torch.bool, device=score.device)
    chosen.scatter_(1, order[:, :n], True)
    axes = (*cut.units, *inside)
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return chosen.view([cut.shape[i] for i in axes]).permute(back).reshape(score.shape)


def holds_half(mask: Tensor) -> bool:
    """Whether every four inputs in a row of the mask (O, I) keep at most two.

    After a change of the mask that remember_half did not record, the host waits to count.
    """
    known = _known.get(mask)
    if known is None or known[0] != mask._version:
        counts = mask.view(mask.shape[0], -1, 4).sum(2, dtype=torch.uint8)
        known = remember_half(mask, bool((counts <= 2).all()))
    return known[1]


def remember_half(mask: Tensor, holds: bool) -> tuple[int, bool]:
    """Record the result of holds_half until the mask changes."""
    known = _known[mask] = (mask._version, holds)
    return known


def _rows(values: Tensor, cut: CutLike) -> Tensor:
    """(number of units, weights of a unit)"""
    inside = _inside(cut)
    size = prod(cut.shape[i] for i in inside)
    return values.reshape(cut.shape).permute(*cut.units, *inside).reshape(cut.num_units, size)


def _inside(cut: CutLike) -> tuple[int, ...]:
    return tuple(i for i in range(len(cut.shape)) if i not in cut.units)
