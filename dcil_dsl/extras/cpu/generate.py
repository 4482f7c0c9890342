"""Machine code for the convolutions of a plan, made when it pays to try it.

In:   a convolution on planes as the C kernels would run it, its kept weights and their offsets.
Out:  Generated: addresses of the code and of the numbers of each block of channels.
Not:  whether it is used is decided by trial.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from dcil_dsl.extras.cpu.build import Library
from dcil_dsl.extras.cpu.code import BLOCK, NUMBER, PART, Epilogue, ordered, routine
from dcil_dsl.extras.cpu.executable import Executable, can_execute
from dcil_dsl.extras.cpu.pack import Kept

Array = np.ndarray
MOST_WEIGHTS = 2**20  # kept weights of a layer; each takes about 8 bytes of code
FEW_WEIGHTS = 2**16  # up to which a dense layer gets code too, such as the first of a network
ACTIVATIONS = (None, "relu", "relu6")
LANES = 16


@dataclass
class Generated:
    """The routines of one layer. The arrays keep the memory alive that `code` and `lists` name.

    parts  routines of each block, one after another
    """

    executable: Executable
    numbers: Array
    code: Array
    lists: Array
    block: int
    parts: int


def can_generate(library: Library, kept: Kept, activation: str | None) -> bool:
    """Whether a layer can have code of its own."""
    return (
        can_execute()
        and library.lanes == LANES
        and activation in ACTIVATIONS
        and len(kept.values) <= MOST_WEIGHTS
        and (len(kept.values) <= FEW_WEIGHTS or 2 * len(kept.values) <= prod(kept.shape))
    )


def generate(kept: Kept, offsets: Array, bias: Array, end: Epilogue) -> Generated | None:
    """The code of a layer; None where the system forbids code that is written at run time.

    offsets  floats from a position to what each kept weight reads
    """
    outer = kept.shape[0]
    blocks = -(-outer // BLOCK)
    block = -(-outer // blocks)
    values = kept.values
    if kept.short:
        values = (kept.values.astype(np.uint32) << 16).view(np.float32)
    most = max(
        int(kept.starts[min(first + block, outer)] - kept.starts[first])
        for first in range(0, outer, block)
    )
    parts = max(1, -(-most // PART))
    routines, numbers = [], []
    for first in range(0, outer, block):
        last = min(first + block, outer)
        own = slice(int(kept.starts[first]), int(kept.starts[last]))
        channels, reads = kept.rows[own] - first, offsets[own].astype(np.int64) * 4
        for number, part in enumerate(np.array_split(ordered(channels, reads), parts)):
            code, read = routine(
                channels[part],
                values[own][part],
                reads[part],
                bias[first:last],
                end,
                number == 0,
                number == parts - 1,
            )
            routines.append(code)
            numbers.append(read)
    try:
        executable = Executable(routines)
    except OSError:
        return None
    starts = np.cumsum([0, *map(len, numbers)])
    together = np.concatenate(numbers)
    lists = together.ctypes.data + NUMBER * starts
    code_at = np.array([*executable.addresses, executable.end], np.int64)
    return Generated(executable, together, code_at, lists, block, parts)
