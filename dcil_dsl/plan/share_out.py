"""A budget divided among layers in given proportions.

In:   proportions, counts of units, floors and ceilings, the budget.
Out:  the density of each layer.
Not:  no rounding to whole units (schedule.py), no scores.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


def share_out(
    weights: Sequence[float],
    sizes: Sequence[int],
    budget: float,
    floors: Sequence[int],
    ceilings: Sequence[int],
) -> tuple[float, ...]:
    """Densities in proportion to `weights`, within the bounds, that together keep the budget.

        d_l = min(max(eps * weights_l, floor_l / n_l), ceiling_l / n_l),  sum n_l * d_l = budget

    What is kept grows with eps in straight pieces that end where a layer meets a bound, so eps is
    solved for exactly in the piece that the budget lies in. At most all ceilings, at least all
    floors are kept, whatever the budget.
    """
    rows = [
        _Row(n, weight, floor / n, ceiling / n)
        for n, weight, floor, ceiling in zip(sizes, weights, floors, ceilings, strict=True)
    ]

    def kept(eps: float) -> float:
        return math.fsum(row.size * row.density(eps) for row in rows)

    ends = sorted({0.0} | {end for row in rows for end in (row.starts, row.stops)})
    start = ends[max(bisect_right(ends, budget, key=kept) - 1, 0)]
    free = [row for row in rows if row.starts <= start < row.stops]
    rate = math.fsum(row.size * row.weight for row in free)
    eps = start + (max(budget - kept(start), 0.0) / rate if rate else 0.0)
    return tuple(row.density(eps) for row in rows)


class _Row(NamedTuple):
    """One layer: its density follows eps between `starts` and `stops`."""

    size: int
    weight: float
    low: float
    high: float

    @property
    def starts(self) -> float:
        return self.low / self.weight

    @property
    def stops(self) -> float:
        return self.high / self.weight

    def density(self, eps: float) -> float:
        if eps <= self.starts:
            return self.low
        return self.high if eps >= self.stops else eps * self.weight
