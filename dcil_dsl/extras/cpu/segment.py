"""Consecutive convolutions and pools as one call of the kernels, image by image.

In:   operations of a program, the shapes of their values, their weights.
Out:  Segment, a step that reads tensors, runs the kernels on planes, and gives tensors.
Not:  which operations belong into a segment is decided in plan.py.

Between the operations activations stay in planes (planes.py), in buffers of one image for each
thread. Tensors are copied into planes where a segment begins and out of them where it ends.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcil_dsl.extras.cpu.build import Kernels, Library
from dcil_dsl.extras.cpu.code import Epilogue
from dcil_dsl.extras.cpu.generate import Generated, can_generate
from dcil_dsl.extras.cpu.pack import Kept
from dcil_dsl.extras.cpu.planes import Plane, Taps, need, offsets, taps_of
from dcil_dsl.extras.cpu.program import ProgramLayer
from dcil_dsl.extras.cpu.steps import Values, address, at, planned
from dcil_dsl.extras.cpu.storage import StoredTensor
from dcil_dsl.extras.cpu.structs import ACTIVATIONS, Op, StructKind
from dcil_dsl.extras.cpu.trial import fastest

Array = np.ndarray
MOST_COLUMNS = 4096  # of a pool's line, as in kernels.c
WIDTHS = (4, 6, 2)  # vectors of a tile
SLACK = 64  # floats after a buffer


@dataclass(frozen=True)
class Pool:
    """A max pool with square windows."""

    input: str
    output: str
    kernel: int
    stride: int
    padding: int


@dataclass
class Sources:
    """What a segment is made from.

    shapes  of every value, as meta tensors
    kept, bias, generated  give the kept weights of a layer, its bias, its code
    """

    shapes: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]
    kept: Callable[[str], Kept]
    bias: Callable[[ProgramLayer], Array]
    generated: Callable[[str, Kept, Array, Array, Epilogue], Generated | None]
    library: Library
    threads: int
    images: int
    kernels: Kernels


@dataclass
class Buffer:
    """Memory for one plane of each worker."""

    plane: Plane
    memory: Tensor

    @property
    def origin(self) -> int:
        return self.memory.data_ptr() + 4 * self.plane.before

    @property
    def worker(self) -> int:
        return self.plane.channels * self.plane.stride


@dataclass
class NativeSegment:
    """The operations, ready to run."""

    table: ctypes.Array[Op]
    reads: list[tuple[int, int, tuple[int, ...]]]  # row of the table, place, shape
    writes: list[tuple[int, int, tuple[int, ...]]]
    library: Library
    images: int
    threads: int
    keep: list[object] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def run(self, values: Values) -> None:
        held = []
        for row, place, shape in self.reads:
            tensor = planned(values[place], shape, "a convolution")
            held.append(tensor)
            self.table[row].input = tensor.data_ptr()
        for row, place, shape in self.writes:
            tensor = torch.empty(shape)
            self.table[row].output = tensor.data_ptr()
            values[place] = tensor
        self.library.functions.dcil_planes(self.table, len(self.table), self.images, self.threads)


class Builder:
    """Builds a Segment: first the layout of every value, then the memory and the operations."""

    def __init__(self, operations: list[ProgramLayer | Pool], sources: Sources, escaping: set[str]):
        self.operations, self.sources, self.escaping = operations, sources, escaping
        self.planes: dict[str, Plane] = {}
        self.phases: dict[int, Plane] = {}
        self.taps: dict[int, Taps] = {}
        self.outside: list[str] = []
        self.free: dict[tuple[object, ...], list[Buffer]] = {}
        self.buffers: dict[str, Buffer] = {}
        self.masks: dict[int, Array] = {}
        self.ops: list[Op] = []
        self.names: list[str] = []
        self.keep: list[object] = []
        self.reads: list[tuple[int, str]] = []
        self.writes: list[tuple[int, str]] = []

    def build(self, places: Mapping[str, int]) -> NativeSegment:
        for index, operation in enumerate(self.operations):
            self._lay_out(index, operation)
        uses = Counter(name for operation in self.operations for name in set(_read_by(operation)))
        for name in self.outside:
            self.buffers[name] = self._take(self.planes[name])
            self._copy_in(name)
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Pool):
                self._pool(operation)
            else:
                self._conv(index, operation)
            if operation.output in self.escaping:
                self._copy_out(operation.output)
            for name in set(_read_by(operation)):
                uses[name] -= 1
                if not uses[name]:
                    self._release(self.buffers.pop(name))
            if not uses[operation.output]:
                self._release(self.buffers.pop(operation.output))
        shape = self.sources.shapes
        return NativeSegment(
            (Op * len(self.ops))(*self.ops),
            [(row, places[name], tuple(shape[name].shape)) for row, name in self.reads],
            [(row, places[name], tuple(shape[name].shape)) for row, name in self.writes],
            self.sources.library,
            self.sources.images,
            self.sources.threads,
            self.keep,
            self.names,
        )

    # ---- layouts

    def _plane(self, name: str) -> Plane:
        if name not in self.planes:
            _, channels, height, width = self.sources.shapes[name].shape
            self.planes[name] = Plane(channels, height, width)
            self.outside.append(name)
        return self.planes[name]

    def _lay_out(self, index: int, operation: ProgramLayer | Pool) -> None:
        given = self._plane(operation.input)
        _, channels, height, width = self.sources.shapes[operation.output].shape
        out = Plane(channels, height, width)
        if isinstance(operation, ProgramLayer):
            shape = self.sources.stored[operation.weight].shape
            taps = taps_of(
                (shape[2], shape[3]), operation.stride, operation.padding, operation.dilation
            )
            self.taps[index] = taps
            read = given
            if not taps.direct:
                high, wide = operation.stride
                read = Plane(
                    given.channels * len(taps.phases),
                    -(-given.height // high),
                    -(-given.width // wide),
                    valid=(given.height, given.width, *operation.stride, *taps.phases),
                )
                self.phases[index] = read
            need(read, taps, height, width)
            out.group.join(read.group)
            if operation.add is not None:
                out.group.join(self._plane(operation.add).group)
        self.planes[operation.output] = out

    # ---- memory

    def _take(self, plane: Plane) -> Buffer:
        ready = self.free.get(plane.key())
        if ready:
            return Buffer(plane, ready.pop().memory)
        size = self.sources.threads * plane.channels * plane.stride + SLACK
        memory = torch.zeros(size)
        self.keep.append(memory)
        return Buffer(plane, memory)

    def _release(self, buffer: Buffer) -> None:
        self.free.setdefault(buffer.plane.key(), []).append(buffer)

    def _hold(self, array: Array) -> int:
        self.keep.append(array)
        return address(array)

    def _add(self, name: str, op: Op) -> int:
        self.ops.append(op)
        self.names.append(name)
        return len(self.ops) - 1

    # ---- operations

    def _copy_in(self, name: str) -> None:
        buffer = self.buffers[name]
        plane = buffer.plane
        row = self._add(
            f"copy {name} in",
            Op(
                kind=StructKind.COPY,
                in_image=plane.channels * plane.height * plane.width,
                output=buffer.origin,
                out_worker=buffer.worker,
                in_plane=plane.height * plane.width,
                out_plane=plane.stride,
                channels=plane.channels,
                height=plane.height,
                columns=plane.width,
                in_row=plane.width,
                in_step=1,
                out_row=plane.row,
            ),
        )
        self.reads.append((row, name))

    def _copy_out(self, name: str) -> None:
        buffer = self.buffers[name]
        plane = buffer.plane
        row = self._add(
            f"copy {name} out",
            Op(
                kind=StructKind.COPY,
                input=buffer.origin,
                in_worker=buffer.worker,
                out_image=plane.channels * plane.height * plane.width,
                in_plane=plane.stride,
                out_plane=plane.height * plane.width,
                channels=plane.channels,
                height=plane.height,
                columns=plane.width,
                in_row=plane.row,
                in_step=1,
                out_row=plane.width,
            ),
        )
        self.writes.append((row, name))

    def _split(self, index: int, given: Buffer) -> Buffer:
        """The phases of a strided convolution's input."""
        plane, taps, source = self.phases[index], self.taps[index], given.plane
        buffer = self._take(plane)
        high, wide = taps.stride
        for number, (y, x) in enumerate(taps.phases):
            if y >= source.height or x >= source.width:
                continue  # an image smaller than the stride has no such row or column
            self._add(
                f"phase {y}, {x} of {self.operations[index].input}",
                Op(
                    kind=StructKind.COPY,
                    input=given.origin + 4 * (y * source.row + x),
                    in_worker=given.worker,
                    output=buffer.origin + 4 * number * source.channels * plane.stride,
                    out_worker=buffer.worker,
                    in_plane=source.stride,
                    out_plane=plane.stride,
                    channels=source.channels,
                    height=-(-(source.height - y) // high),
                    columns=-(-(source.width - x) // wide),
                    in_row=high * source.row,
                    in_step=wide,
                    out_row=plane.row,
                ),
            )
        return buffer

    def _conv(self, index: int, layer: ProgramLayer) -> None:
        given = self.buffers[layer.input]
        read = given if index not in self.phases else self._split(index, given)
        plane = self.planes[layer.output]
        out = self.buffers[layer.output] = self._take(plane)
        op = _between(
            read,
            out,
            kind=StructKind.CONV,
            vectors=plane.positions // self.sources.library.lanes,
            act=ACTIVATIONS[layer.activation],
            bias=self._hold(self.sources.bias(layer)),
            mask=self._hold(self._mask(plane)),
        )
        if layer.add is not None:
            add = self.buffers[layer.add]
            op.add, op.add_worker, op.add_plane = add.origin, add.worker, add.plane.stride
        where = offsets(read.plane, self.taps[index], given.plane.channels)
        weight = self.sources.stored[layer.weight]
        if is_depthwise(layer, weight.shape):
            values = weight.dense(torch.float32).reshape(weight.shape[0], -1).numpy()
            op.kind, op.taps = StructKind.DEPTHWISE, values.shape[1]
            op.values = self._hold(np.ascontiguousarray(values))
            op.offsets = self._hold(where[0].astype(np.int32))
        else:
            kept = self.sources.kept(layer.weight)
            self.keep.append(kept)
            setattr(op, "short_values" if kept.short else "values", address(kept.values))
            op.starts = address(kept.starts)
            spread_out = spread(kept, layer, where)
            op.offsets = self._hold(spread_out)
            op = self._best(op, layer, kept, spread_out)
        self._add(layer.layer, op)
        if index in self.phases:
            self._release(read)

    def _best(self, op: Op, layer: ProgramLayer, kept: Kept, where: Array) -> Op:
        """The C kernel with tiles of one of several widths, or code of the layer's own."""
        sources = self.sources
        found = [_with(op, width=width) for width in WIDTHS]
        if sources.kernels == "c":
            return found[0]
        if can_generate(sources.library, kept, layer.activation):
            end = Epilogue(
                4 * op.out_plane, 4 * op.add_plane, layer.add is not None, layer.activation
            )
            made = sources.generated(layer.output, kept, where, sources.bias(layer), end)
            if made is not None:
                self.keep.append(made)
                code = _with(
                    op,
                    kind=StructKind.CODE,
                    code=address(made.code),
                    code_values=address(made.lists),
                    blocks=(len(made.code) - 1) // made.parts,
                    block=made.block,
                    parts=made.parts,
                )
                if sources.kernels == "generated":
                    return code
                found.append(code)
        if sources.kernels == "generated":
            return found[0]
        run = sources.library.functions.dcil_planes
        return found[fastest([partial(run, at(one), 1, 1, sources.threads) for one in found])]

    def _pool(self, pool: Pool) -> None:
        given, plane = self.buffers[pool.input], self.planes[pool.output]
        out = self.buffers[pool.output] = self._take(plane)
        self._add(
            f"max pool of {pool.input}",
            _between(
                given,
                out,
                kind=StructKind.POOL,
                height=plane.height,
                columns=plane.width,
                in_row=given.plane.row,
                out_row=plane.row,
                in_height=given.plane.height,
                in_columns=given.plane.width,
                kernel=pool.kernel,
                stride=pool.stride,
                padding=pool.padding,
            ),
        )

    def _mask(self, plane: Plane) -> Array:
        found = self.masks.get(id(plane))
        if found is None:
            found = self.masks[id(plane)] = plane.mask()
        return found


def _between(given: Buffer, out: Buffer, **fields: int) -> Op:
    """An operation from the planes of one buffer to those of another."""
    return Op(
        input=given.origin,
        in_worker=given.worker,
        output=out.origin,
        out_worker=out.worker,
        in_plane=given.plane.stride,
        out_plane=out.plane.stride,
        channels=out.plane.channels,
        **fields,
    )


def _with(op: Op, **changes: int) -> Op:
    """A copy with other fields."""
    changed = Op.from_buffer_copy(op)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _read_by(operation: ProgramLayer | Pool) -> list[str]:
    if isinstance(operation, ProgramLayer):
        return list(operation.values())
    return [operation.input]


def is_depthwise(layer: ProgramLayer, shape: tuple[int, ...]) -> bool:
    """Whether each channel has its own kernel."""
    return layer.op == "conv2d" and layer.groups > 1 and shape[0] == layer.groups and shape[1] == 1


def spread(kept: Kept, layer: ProgramLayer, where: Array) -> Array:
    """The offset of each kept weight. Groups read their own channels."""
    taps = where.shape[1]
    channel, tap = kept.columns // taps, kept.columns % taps
    inner = where.shape[0] // layer.groups
    group = kept.rows // max(kept.shape[0] // layer.groups, 1)
    return np.ascontiguousarray(where[channel + group * inner, tap], dtype=np.int32)
