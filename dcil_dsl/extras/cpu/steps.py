"""The steps of a plan that take and give whole tensors: torch functions and linear layers.

In:   an operation of a program, and the places of its values.
Out:  Step, whose `run` reads and fills the list of values of one call.
Not:  no choice between kernels is made here (plan.py); convolutions are in segment.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.cpu.build import Library
from dcil_dsl.extras.cpu.generate import Generated
from dcil_dsl.extras.cpu.pack import MOST_SHORT, Kept, slice_rows
from dcil_dsl.extras.cpu.program import Activation, ProgramLayer
from dcil_dsl.extras.cpu.structs import ACTIVATIONS, RowStruct, Slices

Values = list[Any]
Places = tuple[int, int | None, int]  # of the input, the residual and the output
# How the kernel of one row reads its inputs: 16 at once, 8 at once, one by one. CPUs differ.
GATHERS = (1, 2, 0)


class KernelStep(Protocol):
    """A part of a call: reads values by their places and fills others."""

    def run(self, values: Values) -> None: ...


class Place(int):
    """The place of a value in an argument, apart from an integer that is meant as one."""


def _fill(argument: Any, values: Values) -> Any:
    if isinstance(argument, Place):
        return values[argument]
    if isinstance(argument, list):
        return [_fill(part, values) for part in argument]
    return argument


class TorchCall:
    """A torch function of the program."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        outputs: list[int | None],
        place: str,
    ):
        self.function, self.args, self.kwargs = function, args, kwargs
        self.outputs, self.place = outputs, place

    def filled(self, values: Values) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of one call."""
        args = [_fill(argument, values) for argument in self.args]
        return args, {key: _fill(argument, values) for key, argument in self.kwargs.items()}

    def run(self, values: Values) -> None:
        args, kwargs = self.filled(values)
        try:
            result = self.function(*args, **kwargs)
        except Exception as error:  # such as an index of the input that is out of range
            fact = " ".join(str(error).split())[:200]
            raise InputError(f"{self.place} cannot run: {fact}") from error
        if len(self.outputs) == 1 and not isinstance(result, (list, tuple)):
            result = (result,)
        for place, value in zip(self.outputs, result):
            if place is not None:
                values[place] = value


def activated(x: Tensor, activation: Activation | None) -> Tensor:
    """An activation as torch computes it."""
    match activation:
        case "relu":
            return functional.relu(x)
        case "relu6":
            return functional.relu6(x)
        case "gelu":
            return functional.gelu(x)
    return x


class TorchLayer:
    """A layer with its dense weight, as torch computes it."""

    def __init__(
        self,
        layer: ProgramLayer,
        weight: Tensor,
        bias: Tensor | None,
        read: int,
        add: int | None,
        write: int,
    ):
        self.layer, self.weight, self.bias = layer, weight, bias
        self.read, self.add, self.write = read, add, write

    def run(self, values: Values) -> None:
        layer, x = self.layer, values[self.read]
        if layer.op == "linear":
            y = functional.linear(x, self.weight, self.bias)
        else:
            y = functional.conv2d(
                x,
                self.weight,
                self.bias,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
        if self.add is not None:
            y = y + values[self.add]
        values[self.write] = activated(y, layer.activation)


def address(array: np.ndarray) -> int:
    """Where the numbers of an array lie."""
    return int(array.ctypes.data)


def at(struct: ctypes.Structure) -> int:
    return ctypes.addressof(struct)


def planned(tensor: object, shape: tuple[int, ...], reader: str) -> Tensor:
    """A value as a kernel reads it. InputError where it is not what the plan was made for.

    Torch infers shapes without numbers; this holds the result against it before a pointer is taken.
    """
    if (
        not isinstance(tensor, Tensor)
        or tensor.shape != shape
        or tensor.dtype != torch.float32
        or tensor.device.type != "cpu"
        or tensor.layout != torch.strided
    ):
        given = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{reader} got {given}, and {list(shape)} in float32 was planned")
    return tensor.contiguous()


class LinearStep:
    """A linear layer without its zeros; a subclass for each kernel.

    threads  of one call
    """

    def __init__(
        self,
        layer: ProgramLayer,
        library: Library,
        places: Places,
        shape: tuple[int, ...],
        kept: Kept,
        threads: int,
    ):
        self.layer, self.library, self.shape, self.threads = layer, library, shape, threads
        self.read, self.add, self.write = places
        self.outer, self.inner = kept.shape

    def run(self, values: Values) -> None:
        x = planned(values[self.read], self.shape, self.layer.layer)
        result = (*self.shape[:-1], self.outer)
        add = None if self.add is None else planned(values[self.add], result, self.layer.layer)
        y = torch.empty(result, dtype=torch.float32)
        self.compute(x, y, add)
        values[self.write] = y

    def compute(self, x: Tensor, y: Tensor, add: Tensor | None) -> None:
        raise NotImplementedError


class SlicedLinear(LinearStep):
    """For few rows: a vector of outputs, each lane with its own columns.

    gathers  how the kernel reads a vector of inputs: one of GATHERS
    """

    def __init__(
        self,
        layer: ProgramLayer,
        library: Library,
        places: Places,
        shape: tuple[int, ...],
        kept: Kept,
        bias: np.ndarray,
        threads: int,
        gathers: int,
    ):
        super().__init__(layer, library, places, shape, kept, threads)
        sliced = slice_rows(kept, bias, library.lanes)
        self.keep = sliced
        short = sliced.columns.dtype == np.uint16
        self.struct = Slices(
            values=None if sliced.short else address(sliced.values),
            short_values=address(sliced.values) if sliced.short else None,
            columns=None if short else address(sliced.columns),
            short_columns=address(sliced.columns) if short else None,
            starts=address(sliced.starts),
            order=address(sliced.order),
            bias=address(sliced.bias),
            inner=self.inner,
            outer=self.outer,
            slices=len(sliced.starts) - 1,
            act=ACTIVATIONS[layer.activation],
            gathers=gathers,
        )
        self.row = torch.zeros(self.inner + 1)

    def compute(self, x: Tensor, y: Tensor, add: Tensor | None) -> None:
        rows = x.reshape(-1, self.inner)
        for index in range(len(rows)):
            self.row[:-1] = rows[index]
            step = index * self.outer * 4
            self.library.functions.dcil_slices(
                at(self.struct),
                self.row.data_ptr(),
                y.data_ptr() + step,
                None if add is None else add.data_ptr() + step,
                self.threads,
            )


class RowsLinear(LinearStep):
    """For many rows: a vector of rows for each kept weight.

    width  vectors of a tile of rows: 1, 2, 4 or 6; with code any up to MOST_WIDTH
    """

    def __init__(
        self,
        layer: ProgramLayer,
        library: Library,
        places: Places,
        shape: tuple[int, ...],
        kept: Kept,
        bias: np.ndarray,
        threads: int,
        width: int,
    ):
        super().__init__(layer, library, places, shape, kept, threads)
        size = width * library.lanes
        short = self.inner <= MOST_SHORT
        columns = kept.columns.astype(np.uint16) if short else kept.columns * size
        columns = columns if short else columns.astype(np.int32)
        self.keep = (kept, columns, bias)
        self.struct = RowStruct(
            values=None if kept.short else address(kept.values),
            short_values=address(kept.values) if kept.short else None,
            offsets=None if short else address(columns),
            short_offsets=address(columns) if short else None,
            starts=address(kept.starts),
            bias=address(bias),
            scale=size,
            inner=self.inner,
            outer=self.outer,
            act=ACTIVATIONS[layer.activation],
            width=width,
        )
        self.scratch = torch.empty(threads * self.inner * size)

    def use_code(self, made: Generated) -> None:
        """Run the code of the layer in place of its weights."""
        self.made = made
        self.struct.code, self.struct.code_values = address(made.code), address(made.lists)
        self.struct.blocks = (len(made.code) - 1) // made.parts
        self.struct.block, self.struct.parts = made.block, made.parts

    def compute(self, x: Tensor, y: Tensor, add: Tensor | None) -> None:
        self.library.functions.dcil_rows(
            at(self.struct),
            x.data_ptr(),
            y.data_ptr(),
            None if add is None else add.data_ptr(),
            x.numel() // self.inner,
            self.scratch.data_ptr(),
            self.threads,
        )
