"""ERK: a budget shared out among layers by their shapes.

In:   shapes, counts of units, floors and ceilings, the budget.
Out:  the density of each layer.
Not:  no rounding to whole units (schedule.py), no scores.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def erk_weights(
    shapes: Sequence[Sequence[Sequence[int]]], power: float = 1.0
) -> tuple[float, ...]:
    """What the densities of layers are in proportion to, for the shapes of each one's weights.

        ((sum of the dimensions) / (product of the dimensions))^power

    The kernel's dimensions count: Erdos-Renyi-Kernel, Evci et al. 2020, arXiv:1911.11134,
    section 3. `power` is `erk_power_scale` of the authors' code; 0 is uniform. Of several weights
    that are pruned as one, sums and products are added up.
    """
    return tuple(
        (sum(map(sum, own)) / sum(map(math.prod, own))) ** power for own in shapes
    )


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
        (n, weight, floor / n, ceiling / n)
        for n, weight, floor, ceiling in zip(sizes, weights, floors, ceilings, strict=True)
    ]

    def density(row: tuple[int, float, float, float], eps: float) -> float:
        _, weight, low, high = row
        return min(max(eps * weight, low), high)

    def kept(eps: float) -> float:
        return math.fsum(row[0] * density(row, eps) for row in rows)

    ends = sorted({0.0} | {bound / weight for _, weight, *bounds in rows for bound in bounds})
    start = ends[max(bisect_right(ends, budget, key=kept) - 1, 0)]
    free = [row for row in rows if row[2] <= start * row[1] < row[3]]
    rate = math.fsum(n * weight for n, weight, *_ in free)
    eps = start + (max(budget - kept(start), 0.0) / rate if rate else 0.0)
    return tuple(density(row, eps) for row in rows)
