"""Divide a budget among layers so that the summed loss increase is least.

In:   each layer's size, its measured curve, the least and the most it may keep; the budget.
Out:  how many weights each layer keeps, together exactly the budget.
Not:  no files (profile.py), no recipe (allocate.py).

The problem, with L_i the measured loss increase of layer i at sparsity s_i of its n_i weights:

    minimise   sum_i L_i(s_i)     where   sum_i n_i s_i = R,   low_i <= s_i <= high_i

It treats the increases as if they added up: each was measured with the other layers unpruned. At an
optimum all curves are left at one slope dL_i / d(n_i s_i), as at one price per weight. So each
curve is replaced by its lower convex hull, whose pieces are taken cheapest first. What comes out
is the optimum for the hulls; every layer but one ends at a measured point, where hull and curve
agree. Pieces of one price are taken in the order of the sparsity that they lead to, so that
insensitive layers are not emptied one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcil_dsl.plan.schedule import whole_units

Curve = Sequence[tuple[float, float]]  # (sparsity, loss increase), rising in both, from (0, 0)


class Infeasible(Exception):
    """The budget prunes more weights than the curves or the floors allow, or fewer. `most` and
    `least` are the bounds on the pruned weights in all."""

    def __init__(self, least: int, most: int):
        self.least, self.most = least, most
        super().__init__(f"between {least} and {most} weights may go")


def least_loss(
    sizes: Sequence[int],
    curves: Sequence[Curve],
    num_keep: int,
    floors: Sequence[int],
    ceilings: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The number of weights that each layer keeps, `num_keep` in all.

    floors, ceilings  the least and the most that each layer keeps
    Raises Infeasible; beyond the last measured sparsity no layer goes.
    """
    ceilings = list(ceilings or sizes)
    lows = [size - ceiling for size, ceiling in zip(sizes, ceilings, strict=True)]
    highs = [
        max(low, min(size - floor, num_gone(size, curve[-1][0])))
        for size, curve, floor, low in zip(sizes, curves, floors, lows, strict=True)
    ]
    left = sum(sizes) - num_keep - sum(lows)
    if not 0 <= left <= sum(highs) - sum(lows):
        raise Infeasible(sum(lows), sum(highs))
    gone = list(lows)
    pieces = []
    for index, (size, curve, low, high) in enumerate(zip(sizes, curves, lows, highs, strict=True)):
        hull = lower_hull(_between(size, curve, low, high))
        pieces += [
            ((loss - before_loss) / (after - before), after / size, index, after - before)
            for (before, before_loss), (after, loss) in zip(hull, hull[1:], strict=False)
        ]
    # A hull's slopes rise, so the pieces of one layer come in their own order.
    for _, _, index, length in sorted(pieces):
        taken = min(length, left)
        gone[index] += taken
        left -= taken
    return tuple(size - count for size, count in zip(sizes, gone, strict=True))


def num_gone(size: int, sparsity: float) -> int:
    """The number of pruned weights of a layer at a measured sparsity: at most all but one."""
    return size - max(1, whole_units(size * (1 - sparsity)))


def lower_hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The lower convex hull of points of rising x (Andrew's monotone chain, 1979).

    Points on a straight piece of it stay.
    """
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x1) <= (y - y1) * (x1 - x0) * (1 + 1e-12):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def interpolate(curve: Curve, sparsity: float) -> float:
    """The loss increase at a sparsity between the first and the last of the curve."""
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if sparsity <= after:
            return low + (high - low) * (sparsity - before) / (after - before)
    return curve[-1][1]


def _between(size: int, curve: Curve, low: int, high: int) -> list[tuple[int, float]]:
    """The curve in whole weights gone, from `low` to `high`, both with a point of their own."""
    inner = {num_gone(size, sparsity): loss for sparsity, loss in curve}
    ends = {end: interpolate(curve, end / size) for end in (low, high)}
    return sorted((n, loss) for n, loss in (inner | ends).items() if low <= n <= high)
