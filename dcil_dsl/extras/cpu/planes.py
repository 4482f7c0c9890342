"""Planes: how the activations of convolutions lie in memory, so that a tap is one offset.

In:   sizes of images and kernels.
Out:  Plane, the layout of one value; Taps, where a convolution reads.
Not:  no memory is taken here (segment.py).

A plane is one channel: its rows one after another, `row` floats apart, with zeros between them and
around them. A convolution of stride 1 reads position p + offset for output position p, so both
planes have the same `row`. A strided convolution first splits its input into phases, one plane for
each remainder of row and column, and then reads with stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
UNIT = 16  # floats; planes begin at multiples, so that vectors of every width are aligned


@dataclass
class Plane:
    """The layout of one value.

    gap         zero columns between rows that its readers need
    before      zero positions in front of the first row; row: floats from one row to the next
    stride      floats from one channel to the next
    valid       which part the writer fills; two planes of one layout share memory only where this
                is the same, because everything else has to stay zero
    """

    channels: int
    height: int
    width: int
    gap: int = 0
    above: int = 0
    below: int = 0
    valid: object = None
    group: PlaneGroup = field(default_factory=lambda: PlaneGroup())

    def __post_init__(self) -> None:
        self.group.members.append(self)

    @property
    def row(self) -> int:
        return self.group.row

    @property
    def before(self) -> int:
        return -(-(self.above * self.row + self.gap) // UNIT) * UNIT

    @property
    def positions(self) -> int:
        """Output positions, rounded up to whole units."""
        return -(-(self.height * self.row) // UNIT) * UNIT

    @property
    def stride(self) -> int:
        # A reader computes all positions of its own plane, up to a whole unit.
        after = (self.below + 1) * self.row + self.gap + self.group.positions + UNIT
        units = -(-(self.before + after) // UNIT)
        return (units | 1) * UNIT  # odd, so that channels do not share cache sets

    def key(self) -> tuple[object, ...]:
        return (
            self.channels,
            self.height,
            self.width,
            self.row,
            self.before,
            self.stride,
            self.valid,
        )

    def mask(self) -> Array:
        """All ones for the positions that are part of the image."""
        p = np.arange(self.positions)
        inside = (p % self.row < self.width) & (p < self.height * self.row)
        mask: Array = np.where(inside, np.int32(-1), np.int32(0))
        return mask


@dataclass
class PlaneGroup:
    """Planes that have the same distance between rows."""

    members: list[Plane] = field(default_factory=list)

    @property
    def row(self) -> int:
        return max(plane.width + plane.gap for plane in self.members)

    @property
    def positions(self) -> int:
        return max(plane.positions for plane in self.members)

    def join(self, other: PlaneGroup) -> None:
        if other is self:
            return
        for plane in other.members:
            plane.group = self
        self.members += other.members


@dataclass(frozen=True)
class Taps:
    """Where a convolution reads, in phases of its input.

    phases   the remainders of row and column that are read, in order
    rows, columns  of each tap: its phase in that direction and the offset in rows or columns
    """

    stride: tuple[int, int]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @property
    def phases(self) -> list[tuple[int, int]]:
        return [
            (y, x)
            for y in sorted({phase for phase, _ in self.rows})
            for x in sorted({phase for phase, _ in self.columns})
        ]

    @property
    def direct(self) -> bool:
        """Whether the input is read as it is."""
        return self.stride == (1, 1)


def taps_of(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Taps:
    """The taps of a kernel: i * dilation - padding = stride * offset + phase."""
    rows, columns = (
        tuple(
            ((i * dilation[dim] - padding[dim]) % stride[dim],)
            + ((i * dilation[dim] - padding[dim]) // stride[dim],)
            for i in range(kernel[dim])
        )
        for dim in (0, 1)
    )
    return Taps(stride, rows, columns)


def need(plane: Plane, taps: Taps, height: int, width: int) -> None:
    """Give a plane the zeros that reading it for an output of that size needs."""
    rows = [offset for _, offset in taps.rows]
    columns = [offset for _, offset in taps.columns]
    plane.above = max(plane.above, -min(rows), 0)
    plane.below = max(plane.below, height + max(rows) - plane.height, 0)
    plane.gap = max(plane.gap, -min(columns), width + max(columns) - plane.width, 0)


def offsets(plane: Plane, taps: Taps, channels: int) -> Array:
    """[channels, taps]: floats from an output position to what each tap reads.

    channels  of one phase; a plane of phases has them one phase after another
    """
    phases = {phase: index for index, phase in enumerate(taps.phases)}
    found = [
        phases[y, x] * channels * plane.stride + i * plane.row + j
        for y, i in taps.rows
        for x, j in taps.columns
    ]
    result: Array = np.arange(channels)[:, None] * plane.stride + np.array(found)[None]
    return result
