"""Weights in the layouts of the kernels.

In:   a stored weight as a matrix, its kept numbers.
Out:  arrays of values, offsets and starts; every offset is inside what the kernel may read.
Not:  no geometry is decided here (planes.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dcil_dsl.extras.cpu.storage import StoredTensor

Array = np.ndarray
MOST_SHORT = 2**16 - 1


@dataclass
class Kept:
    """The kept weights of a matrix, row by row.

    values  float32, or the bits of bfloat16 as uint16
    rows, columns, starts  of each value; starts has one entry more than there are rows
    """

    shape: tuple[int, int]
    values: Array
    rows: Array
    columns: Array
    starts: Array
    short: bool = field(default=False)


def numbers(tensor: Tensor) -> tuple[Array, bool]:
    """Values as the kernels read them, and whether they are bfloat16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16), True
    return tensor.float().contiguous().numpy(), False


def keep(weight: StoredTensor) -> Kept:
    """The kept weights of a stored weight as a matrix of outputs by everything else."""
    outer = weight.shape[0]
    inner = weight.size // outer if outer else 0
    kept = weight.kept().reshape(outer, inner)
    rows, columns = np.nonzero(kept)
    values = weight.values
    if weight.mask is None:
        values = values.reshape(-1)[torch.from_numpy(kept.reshape(-1))]
    given, short = numbers(values)
    starts = np.zeros(outer + 1, np.int64)
    np.cumsum(kept.sum(1), out=starts[1:])
    return Kept((outer, inner), given, rows, columns, starts, short)


@dataclass
class Sliced:
    """Slices of `lanes` outputs of similar length, for a linear layer of one row.

    Lanes with fewer weights than their slice are filled with zeros times column `inner`, which is
    a zero that the kernel's caller appends to the input.
    """

    values: Array
    columns: Array
    starts: Array
    order: Array
    bias: Array
    short: bool


def slice_rows(kept: Kept, bias: Array, lanes: int) -> Sliced:
    """Sort the outputs by their number of weights and cut them into slices."""
    outer, inner = kept.shape
    counts = np.diff(kept.starts)
    slices = -(-outer // lanes)
    order = np.full(slices * lanes, -1, np.int32)
    order[:outer] = np.argsort(-counts, kind="stable")
    padded = np.zeros(slices * lanes, np.int64)
    padded[:outer] = counts[order[:outer]]
    starts = np.zeros(slices + 1, np.int64)
    np.cumsum(padded.reshape(slices, lanes).max(1, initial=0), out=starts[1:])
    rank = np.empty(outer, np.int64)
    rank[order[:outer]] = np.arange(outer)
    own = rank[kept.rows]
    within = np.arange(len(kept.rows)) - kept.starts[kept.rows]
    at = (starts[own // lanes] + within) * lanes + own % lanes
    values = np.zeros(int(starts[-1]) * lanes, kept.values.dtype)
    columns = np.full(len(values), inner, np.uint16 if inner <= MOST_SHORT else np.int32)
    values[at] = kept.values
    columns[at] = kept.columns
    sorted_bias = np.zeros(slices * lanes, np.float32)
    sorted_bias[:outer] = bias[order[:outer]]
    return Sliced(values, columns, starts, order, sorted_bias, kept.short)
