"""Granularities to cuts: how a weight of a given shape falls into units.

In:   a weight's shape and axes (model/layers.py), a unit; for heads, what of it is whose.
Out:  Cut of the Plan; Misfit, with the reason in words, where the weight does not fall so.
Not:  no scores; whether sparse tensor cores run a pattern is told, not measured.

A weight is seen as (groups, first, second, kernel): dimension 0 of a convolution counts the
outputs (of a transposed one the inputs) of all groups, dimension 1 the others of one group.
"""

from __future__ import annotations

import math

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.model.heads import HeadShare
from dcil_dsl.model.layers import Weight
from dcil_dsl.plan import plan as p
from dcil_dsl.words.granularity import (
    Block,
    Channel,
    Filter,
    Granularity,
    Head,
    Pattern,
)

# The sides of the two-dimensional weights that torch.sparse.SparseSemiStructuredTensorCUSPARSELT
# takes in half precision are multiples of this (torch/sparse/semi_structured.py).
TENSOR_CORE_SIDE = 16


class Misfit(Exception):
    """A weight that does not fall into such units; the text is the reason."""


def cut_weight(weight: Weight, unit: Granularity, share: HeadShare | None = None) -> p.Cut:
    """How the weight falls into units. Raises Misfit."""
    match unit:
        case Pattern(m=m):
            return _tiled(weight, 1, m)
        case Block(height=height, width=width):
            return _tiled(weight, height, width)
        case Filter():
            return _cut(_sizes(weight), {0, 1 + weight.out_axis})
        case Channel():
            return _cut(_sizes(weight), {0, 1 + weight.in_axis})
        case Head():
            return _heads(weight, share)
    raise AssertionError(unit)


def tensor_core_obstacle(weight: Weight, unit: Pattern) -> str:
    """Why sparse tensor cores do not run the pattern in this weight, "" where they do.

    What torch runs, to_sparse_semi_structured of a linear layer, and a convolution with a kernel
    of one, which is the same product. Larger kernels hold the pattern along the input channels,
    as TensorRT wants it, and torch has no kernel for them.
    """
    outputs, inputs = (weight.shape[axis] for axis in (weight.out_axis, weight.in_axis))
    kernel = weight.shape[2:]
    if (unit.n, unit.m) != (2, 4):
        return f"the hardware's pattern is 2:4, not {unit.n}:{unit.m}"
    if weight.groups > 1:
        return f"{weight.groups} groups are as many small products"
    if math.prod(kernel) > 1:
        return f"a {' x '.join(map(str, kernel))} kernel is no matrix product in torch"
    if outputs % TENSOR_CORE_SIDE or inputs % TENSOR_CORE_SIDE:
        return f"{outputs} x {inputs}: both sides must be multiples of {TENSOR_CORE_SIDE}"
    return ""


def _sizes(weight: Weight) -> tuple[int, int, int, int]:
    first, second, *kernel = weight.shape
    return weight.groups, first // weight.groups, second, math.prod(kernel)


def _tiled(weight: Weight, height: int, width: int) -> p.Cut:
    """Tiles of outputs by inputs at each position of the kernel."""
    tiles = {1 + weight.out_axis: height, 1 + weight.in_axis: width}
    sizes, units = [], set()
    for place, size in enumerate(_sizes(weight)):
        tile = tiles.get(place, 1)
        if size % tile:
            what = "output" if place == 1 + weight.out_axis else "input"
            per = " a group" if weight.groups > 1 else ""
            raise Misfit(f"{count(size, what)}{per}, no multiple of {tile}")
        units.add(len(sizes))
        sizes += [size // tile, tile] if place in tiles else [size]
    return _cut(tuple(sizes), units)


def _heads(weight: Weight, share: HeadShare | None) -> p.Cut:
    if share is None:
        raise Misfit("it belongs to no attention whose heads are known")
    axis = weight.out_axis if share.is_output else weight.in_axis
    before, after = weight.shape[:axis], weight.shape[axis + 1 :]
    width = weight.shape[axis] // (share.parts * share.num_heads)
    sizes = (math.prod(before), share.parts, share.num_heads, width, math.prod(after))
    return _cut(sizes, {2})


def _cut(sizes: tuple[int, ...], units: set[int]) -> p.Cut:
    """Dimensions of one are left out, neighbours of one kind taken together."""
    merged: list[list] = []
    for place, size in enumerate(sizes):
        if size == 1:
            continue
        if merged and merged[-1][1] == (place in units):
            merged[-1][0] *= size
        else:
            merged.append([size, place in units])
    return p.Cut(
        shape=tuple(size for size, _ in merged),
        units=tuple(place for place, (_, is_unit) in enumerate(merged) if is_unit),
    )
