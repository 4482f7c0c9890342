"""The placement of weights of which each process has a stretch of rows.

In:   scores or masks of the rows, how the whole weight falls into units, where the rows lie in it.
Out:  RowPlacement; what the rows add to the sums of units; the rows of masks.
Not:  nothing is cut here (shards.py).

Rows are indices of the weight's first dimension. A cut (masking/units.py) views a weight in a shape
of its own. Some dimensions of that shape run over the rows, the others within a row. One that does
both, because a cut merges neighbouring dimensions of one kind, is split here. For blocks of 4 x 2
of a matrix:

    (O / 4, 4, I / 2, 2)  units (0, 2)    ==>    over (O / 4, 4)    within (I / 2, 2)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dcil_dsl.masking.placement import Placement
from dcil_dsl.masking.select import Across
from dcil_dsl.masking.units import CutLike


class Rows(Protocol):
    """Which rows of a weight this process has: as many as its tensors are long, from `start` on.

    shape  of the whole weight
    """

    @property
    def start(self) -> int: ...

    @property
    def shape(self) -> Sequence[int]: ...

    def whole(self, own: Tensor) -> Tensor:
        """All rows, on every process, all of which call it."""

    def own(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor of the weight's shape."""


class RowPlacement(Placement):
    """Several processes, each of which has some rows of every pruned weight.

    rows  by the weight's name
    """

    across: Across

    def __init__(self, across: Across, rows: Mapping[str, Rows]):
        self.across, self.rows = across, rows

    def totals(self, values: Sequence[Tensor]) -> list[Tensor]:
        """In one exchange."""
        sums = self.across.sum(torch.cat([value.reshape(-1) for value in values]))
        parts = torch.split(sums, [value.numel() for value in values])
        return [part.view(v.shape) for part, v in zip(parts, values, strict=True)]

    def sum_units(self, name: str, values: Tensor, cut: CutLike, dtype: torch.dtype) -> Tensor:
        return sum_units(values, cut, self.rows[name], dtype)

    def spread(self, name: str, kept: Tensor, cut: CutLike, like: Tensor) -> Tensor:
        return spread_to_rows(kept, cut, self.rows[name], len(like))

    def pattern_cut(self, name: str, cut: CutLike, num_rows: int) -> CutLike:
        return pattern_of_rows(cut, self.rows[name], num_rows)

    def on_whole(self, name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """One weight at a time is gathered: a score may depend on all others of its layer."""
        rows = self.rows[name]
        return rows.own(function(rows.whole(values)))

    def start(self, name: str) -> int:
        rows = self.rows[name]
        return rows.start * prod(rows.shape[1:])


class Dimension(NamedTuple):
    """One of a cut: how long, and whether each of its indices is of another unit."""

    size: int
    is_unit: bool

    @property
    def num_units(self) -> int:
        return self.size if self.is_unit else 1


class OwnCut(NamedTuple):
    """How some rows fall into units."""

    shape: tuple[int, ...]
    units: tuple[int, ...]

    @property
    def num_units(self) -> int:
        return prod(self.shape[i] for i in self.units)


@torch.no_grad()
def sum_units(values: Tensor, cut: CutLike, rows: Rows, dtype: torch.dtype) -> Tensor:
    """What the rows add to the sum of each unit of the whole weight, (number of units,).

    Neighbouring rows of one unit are added first, so that nothing of the size of the weight is
    made, and always in one order: a device adds to indexed places in another at each call.
    """
    over, within = _parted(cut, rows.shape[0])
    runs, length = list(over), 1  # the number of neighbouring rows in the same units
    while runs and not runs[-1].is_unit:
        length *= runs.pop().size
    others = [2 + i for i, dimension in enumerate(within) if not dimension.is_unit]
    units_within = prod(dimension.num_units for dimension in within)

    def summed(part: Tensor, num_runs: int) -> Tensor:
        size = len(part) // max(num_runs, 1)
        seen = part.reshape(num_runs, size, *(dimension.size for dimension in within))
        return seen.sum([1, *others], dtype=dtype).reshape(num_runs, units_within)

    head = min(-rows.start % length, len(values))  # of a run that began on an earlier process
    num_whole = (len(values) - head) // length
    tail = head + num_whole * length
    pieces = [summed(values[head:tail], num_whole)]
    if head:
        pieces.insert(0, summed(values[:head], 1))
    if tail < len(values):
        pieces.append(summed(values[tail:], 1))
    own = torch.cat(pieces)
    sums = own.new_zeros(prod(run.size for run in runs), units_within)
    sums.narrow(0, min(rows.start // length, len(sums)), len(own)).copy_(own)
    apart = [i for i, run in enumerate(runs) if not run.is_unit]  # runs of one unit, not in a row
    sums = sums.view(*(run.size for run in runs), units_within)
    return (sums.sum(apart) if apart else sums).flatten()


def spread_to_rows(kept: Tensor, cut: CutLike, rows: Rows, num_rows: int) -> Tensor:
    """The rows of a mask, from one boolean per unit of the whole weight."""
    over, within = _parted(cut, rows.shape[0])
    places = torch.arange(prod(d.num_units for d in over), device=kept.device)
    places = places.view([d.num_units for d in over]).expand([d.size for d in over])
    places = places.reshape(-1)[rows.start : rows.start + num_rows]
    own = kept.view(-1, prod(d.num_units for d in within))[places]
    own = own.view(num_rows, *(d.num_units for d in within))
    own = own.expand(num_rows, *(d.size for d in within))
    return own.reshape(num_rows, *rows.shape[1:])


def pattern_needs(cut: CutLike, num_rows: int) -> int:
    """A stretch of rows holds whole groups of m where it begins at a multiple of this."""
    return prod(d.size for d in _parted(cut, num_rows)[0] if not d.is_unit)


def pattern_of_rows(cut: CutLike, rows: Rows, num_rows: int) -> OwnCut:
    """How rows fall into groups of m, of which they hold whole ones: see pattern_needs."""
    over, within = _parted(cut, rows.shape[0])
    m = prod(dimension.size for dimension in over if not dimension.is_unit)
    shape = (num_rows // m, m, *(dimension.size for dimension in within))
    along = [1] if m > 1 else [2 + i for i, d in enumerate(within) if not d.is_unit]
    return OwnCut(shape, tuple(i for i in range(len(shape)) if i not in along))


def _parted(cut: CutLike, num_rows: int) -> tuple[list[Dimension], list[Dimension]]:
    """The cut's dimensions over the rows of the weight, and those within a row."""
    over, within, left = [], [], num_rows
    for place, size in enumerate(cut.shape):
        is_unit = place in cut.units
        above = min(size, left)
        assert left % above == 0 and size % above == 0, (cut, num_rows)
        left //= above
        if above > 1:
            over.append(Dimension(above, is_unit))
        if size > above:
            within.append(Dimension(size // above, is_unit))
    return over, within
