"""Machine code for one convolution: an instruction for each kept weight.

In:   a block of output channels, a part of its kept weights, the offsets that they read.
Out:  the code of that part and the list of numbers that it reads in order.
Not:  nothing is executed here (executable.py); x86-64 with AVX-512 alone.

A routine holds up to BLOCK output channels of 16 positions in registers. It loads each input vector
that any of the channels reads once, and has one fused multiply-add for each kept weight, whose
value it reads from the list. It is called as f(input, numbers, output, residual, mask) with the
calling convention of System V.

The weights of a block are cut into parts of at most PART. The first part begins with the bias, the
others with the sums that lie in the output, and the last one finishes them. So a part is small
enough to stay in the instruction cache while it runs for all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
BLOCK = 28  # output channels; the other four registers hold input vectors
LOADED = 4
PART = 768  # weights; 7 bytes of code each and 10 for each load
# General registers: the arguments in order.
INPUT, NUMBERS, OUTPUT, RESIDUAL, MASK = 7, 6, 2, 1, 8
# Opcode maps and prefixes of the instructions.
_0F, _0F38 = 1, 2
_PLAIN, _66 = 0, 1
STEP = 256  # numbers that one byte of displacement reaches
VECTOR, NUMBER = 64, 4  # bytes; the unit of a one-byte displacement

RETURN = bytes([0xC5, 0xF8, 0x77, 0xC3])  # vzeroupper; ret


@dataclass(frozen=True)
class Form:
    """An instruction of EVEX with 512-bit vectors.

    unit       bytes that a one-byte displacement counts
    broadcast  the memory operand is one float for all lanes
    """

    opcode: int
    map: int
    prefix: int
    unit: int = VECTOR
    broadcast: bool = False


LOAD = Form(0x10, _0F, _PLAIN)  # vmovups zmm, [m]
STORE = Form(0x11, _0F, _PLAIN)  # vmovups [m], zmm
SPLAT = Form(0x18, _0F38, _66, NUMBER)  # vbroadcastss zmm, [m]
MULTIPLY_ADD = Form(0xB8, _0F38, _66, NUMBER, True)  # vfmadd231ps zmm, zmm, [m]{1to16}
ADD = Form(0x58, _0F, _PLAIN)  # vaddps
MAXIMUM = Form(0x5F, _0F, _PLAIN)  # vmaxps: the second source where one is NaN
MINIMUM = Form(0x5D, _0F, _PLAIN)  # vminps: the same
AND = Form(0xDB, _0F, _66)  # vpandd
XOR = Form(0xEF, _0F, _66)  # vpxord


@dataclass
class Lines:
    """Instructions of different length: one row of bytes each, and how many of them count."""

    rows: Array
    lengths: Array

    def bytes(self, order: Array | None = None) -> bytes:
        rows, lengths = self.rows, self.lengths
        if order is not None:
            rows, lengths = rows[order], lengths[order]
        inside = np.arange(rows.shape[1])[None] < lengths[:, None]
        return bytes(rows[inside].tobytes())


WIDEST = 10


def _inverted(number: Array, bit: int) -> Array:
    result: Array = 1 - ((number >> bit) & 1)
    return result


def _head(form: Form, target: Array, source: Array, bit3: Array, bit4: Array) -> Array:
    """The four bytes of the prefix and the opcode; bit3 and bit4 as the prefix has them."""
    rows = np.zeros((len(target), WIDEST), np.uint8)
    rows[:, 0] = 0x62
    rows[:, 1] = (
        _inverted(target, 3) << 7 | bit4 << 6 | bit3 << 5 | _inverted(target, 4) << 4 | form.map
    )
    rows[:, 2] = (~source & 15) << 3 | 4 | form.prefix
    rows[:, 3] = 2 << 5 | int(form.broadcast) << 4 | _inverted(source, 4) << 3
    rows[:, 4] = form.opcode
    return rows


def memory(form: Form, target: Array, source: Array, base: int, offset: Array) -> Lines:
    """Instructions with an operand in memory at `base` + offset bytes."""
    target, source, offset = np.broadcast_arrays(
        *(np.asarray(part, np.int64) for part in (target, source, offset))
    )
    ones = np.ones(len(target), np.int64)
    rows = _head(form, target, source, ones * (1 - (base >> 3)), ones)
    near = (offset % form.unit == 0) & (np.abs(offset // form.unit + 0.5) < 128)
    rows[:, 5] = np.where(near, 0x40, 0x80) | (target & 7) << 3 | (base & 7)
    rows[:, 6] = np.where(near, offset // form.unit, offset) & 255
    for byte in (1, 2, 3):
        rows[:, 6 + byte] = (offset >> 8 * byte) & 255
    return Lines(rows, np.where(near, 7, 10))


def registers(form: Form, target: Array, source: Array, other: Array) -> Lines:
    """Instructions on three registers."""
    target, source, other = np.broadcast_arrays(
        *(np.asarray(part, np.int64) for part in (target, source, other))
    )
    rows = _head(form, target, source, _inverted(other, 3), _inverted(other, 4))
    rows[:, 5] = 0xC0 | (target & 7) << 3 | (other & 7)
    return Lines(rows, np.full(len(target), 6))


def _advance(count: int) -> bytes:
    """add rsi, count"""
    return bytes([0x48, 0x81, 0xC6]) + count.to_bytes(4, "little", signed=True)


def joined(parts: Sequence[tuple[Array, Lines]]) -> bytes:
    """Instructions in the order of their keys."""
    keys = np.concatenate([key for key, _ in parts])
    lines = Lines(
        np.concatenate([lines.rows for _, lines in parts]),
        np.concatenate([lines.lengths for _, lines in parts]),
    )
    return lines.bytes(np.argsort(keys, kind="stable"))


@dataclass(frozen=True)
class Epilogue:
    """What follows the sums of a block.

    out_stride, add_stride  bytes from one channel to the next, in the output and the residual
    add                     whether there is a residual
    """

    out_stride: int
    add_stride: int
    add: bool
    activation: str | None


def routine(
    channels: Array,
    values: Array,
    offsets: Array,
    bias: Array,
    end: Epilogue,
    first: bool = True,
    last: bool = True,
) -> tuple[bytes, Array]:
    """The code of one part of a block, and the numbers that it reads.

    channels, values, offsets  of each kept weight: its channel in the block, its value, and the
                               bytes from the position to what it reads; in the order of `ordered`
    first, last                whether the part begins with the bias, and finishes the sums
    """
    block = len(bias)
    assert 1 <= block <= BLOCK and len(channels) == len(values) == len(offsets)
    sums = np.arange(block)
    if first:
        code = [memory(SPLAT, sums, 0 * sums, NUMBERS, NUMBER * sums).bytes()]
    else:
        code = [memory(LOAD, sums, 0 * sums, OUTPUT, sums * end.out_stride).bytes()]
    start = bias if first else bias[:0]
    if len(values):
        code.append(_advance(NUMBER * (len(start) + STEP // 2)))
        code.append(_sums(channels, offsets))
    if last:
        code.append(_finish(sums, end))
    else:
        code.append(memory(STORE, sums, 0 * sums, OUTPUT, sums * end.out_stride).bytes())
    numbers = np.concatenate([start, values]).astype(np.float32)
    return b"".join(code) + RETURN, numbers


def ordered(channels: Array, offsets: Array) -> Array:
    """The order of the weights of a block: those that read the same input follow each other."""
    return np.lexsort((channels, offsets))


def _sums(channels: Array, offsets: Array) -> bytes:
    """A load for each offset, a multiply-add for each weight, a step after each 256 numbers."""
    count = len(channels)
    places, first, rank = np.unique(offsets, return_index=True, return_inverse=True)
    loaded = 31 - np.arange(len(places)) % LOADED
    index = np.arange(count)
    steps = np.arange(STEP, count, STEP)
    step = np.zeros((len(steps), WIDEST), np.uint8)
    step[:, :7] = np.frombuffer(_advance(NUMBER * STEP), np.uint8)
    return joined(
        [
            (4 * first + 1, memory(LOAD, loaded, 0 * loaded, INPUT, places)),
            (
                4 * index + 2,
                memory(
                    MULTIPLY_ADD,
                    channels,
                    loaded[rank.reshape(-1)],
                    NUMBERS,
                    NUMBER * (index % STEP - STEP // 2),
                ),
            ),
            (4 * steps, Lines(step, np.full(len(steps), 7))),
        ]
    )


def _finish(sums: Array, end: Epilogue) -> bytes:
    """Residual, activation, mask and store of each channel."""
    mask, zero, six = (np.array([register]) for register in (31, 30, 29))
    code = [memory(LOAD, mask, 0 * mask, MASK, 0 * mask).bytes()]
    if end.add:
        code.append(memory(ADD, sums, sums, RESIDUAL, sums * end.add_stride).bytes())
    if end.activation in ("relu", "relu6"):
        code.append(registers(XOR, zero, zero, zero).bytes())
        code.append(registers(MAXIMUM, sums, 30 + 0 * sums, sums).bytes())
    if end.activation == "relu6":
        # mov eax, 6.0f; vpbroadcastd zmm29, eax
        code.append(b"\xb8" + np.float32(6).tobytes())
        code.append(registers(Form(0x7C, _0F38, _66), six, 0 * six, 0 * six).bytes())
        code.append(registers(MINIMUM, sums, 29 + 0 * sums, sums).bytes())
    code.append(registers(AND, sums, sums, 31 + 0 * sums).bytes())
    code.append(memory(STORE, sums, 0 * sums, OUTPUT, sums * end.out_stride).bytes())
    return b"".join(code)
