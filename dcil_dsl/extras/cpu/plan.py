"""How a program runs for inputs of certain shapes: the steps, and why each layer runs where.

In:   a Program, its stored tensors, the shapes of a call, the kernels.
Out:  Plan: steps, places of values, a line for each layer.
Not:  nothing is computed here but shapes (shapes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcil_dsl.extras.cpu.attention import FUNCTION, AttentionCall
from dcil_dsl.extras.cpu.build import Kernels, Library, load_library
from dcil_dsl.extras.cpu.code import Epilogue
from dcil_dsl.extras.cpu.functions import INTEGERS, decode, function_of
from dcil_dsl.extras.cpu.generate import Generated, can_generate, generate
from dcil_dsl.extras.cpu.pack import Kept, keep
from dcil_dsl.extras.cpu.program import (
    CpuProgram,
    ProgramCall,
    ProgramLayer,
    named,
    outputs_of,
    returned,
)
from dcil_dsl.extras.cpu.segment import MOST_COLUMNS, Builder, Pool, Sources, is_depthwise
from dcil_dsl.extras.cpu.shapes import infer, place_of
from dcil_dsl.extras.cpu.steps import (
    GATHERS,
    KernelStep,
    LinearStep,
    Place,
    Places,
    RowsLinear,
    SlicedLinear,
    TorchCall,
    TorchLayer,
)
from dcil_dsl.extras.cpu.storage import FLOATING, StoredTensor
from dcil_dsl.extras.cpu.trial import fastest

MOST_OFFSET = 2**30  # floats between two numbers that a convolution reads
MOST_WIDTH = 8  # vectors of a tile of rows that code computes, as in kernels.c
AVX512 = 16  # lanes of its vectors
FEW_ROWS = 3  # rows of a linear layer that are computed one after another


LinearArguments = tuple[
    ProgramLayer, Library, Places, tuple[int, ...], Kept, np.ndarray, int
]  # of a LinearStep, but for what is its own


@dataclass(frozen=True)
class Line:
    """One layer of a plan, for people.

    where  `sparse` or `torch`; reason: why it is torch
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    num_nonzero: int
    where: str
    reason: str = ""


@dataclass
class KernelPlan:
    """Steps with the places of the values that are dropped after each."""

    steps: list[tuple[KernelStep, tuple[int, ...]]]
    inputs: list[int]
    constants: list[tuple[int, Tensor]]
    integers: list[tuple[int, int]]
    places: dict[str, int]
    lines: list[Line]


class Weights:
    """The stored tensors in the forms that steps need; each form is made once."""

    def __init__(self, stored: Mapping[str, StoredTensor]):
        self.stored = stored
        self._kept: dict[str, Kept] = {}
        self._dense: dict[tuple[str, torch.dtype | None], Tensor] = {}
        self._generated: dict[tuple[str, Epilogue], tuple[np.ndarray, Generated | None]] = {}

    def kept(self, name: str) -> Kept:
        if name not in self._kept:
            self._kept[name] = keep(self.stored[name])
        return self._kept[name]

    def dense(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if (name, dtype) not in self._dense:
            self._dense[name, dtype] = self.stored[name].dense(dtype)
        return self._dense[name, dtype]

    def generated(
        self, key: str, kept: Kept, offsets: np.ndarray, bias: np.ndarray, end: Epilogue
    ) -> Generated | None:
        """The code of a layer; one for each layout of its planes."""
        known = self._generated.get((key, end))
        if known is None or not np.array_equal(known[0], offsets):
            known = self._generated[key, end] = (offsets, generate(kept, offsets, bias, end))
        return known[1]

    def bias(self, layer: ProgramLayer) -> np.ndarray:
        if layer.bias is None:
            return np.zeros(self.stored[layer.weight].shape[0], np.float32)
        return np.ascontiguousarray(self.dense(layer.bias, torch.float32).numpy())


class Planner:
    """Turns the operations of a program into steps."""

    def __init__(
        self,
        program: CpuProgram,
        weights: Weights,
        shapes: Mapping[str, tuple[int, ...]],
        library: Library | str,
        threads: int,
        kernels: Kernels,
    ):
        self.program, self.weights, self.library = program, weights, library
        self.kernels = kernels
        self.threads = threads if isinstance(library, Library) and library.threads else 1
        self.values = infer(program, weights.stored, shapes)
        self.places = {name: index for index, name in enumerate(self.values)}
        self.last = self._last_reads()
        kept = {*(given.name for given in program.inputs), *program.constants}
        self.dropped: dict[int, list[int]] = {}  # the places that no later operation reads
        for name, last in self.last.items():
            if name not in kept:
                self.dropped.setdefault(last, []).append(self.places[name])
        self.steps: list[tuple[KernelStep, tuple[int, ...]]] = []
        self.lines: list[Line] = []

    def plan(self) -> KernelPlan:
        waiting: list[tuple[int, ProgramLayer | Pool]] = []
        for index, operation in enumerate(self.program.operations):
            if isinstance(operation, ProgramCall) and operation.function in INTEGERS:
                continue  # computed with the shapes
            on_planes = self._on_planes(operation)
            if on_planes is not None:
                waiting.append((index, on_planes))
                continue
            self._end_segment(waiting)
            if isinstance(operation, ProgramLayer):
                self._append(index, self._layer(operation))
            elif operation.function == FUNCTION:
                self._append(index, self._attention(index, operation))
            else:
                self._append(index, self._call(index, operation))
        self._end_segment(waiting)
        stored = self.weights
        return KernelPlan(
            self.steps,
            [self.places[given.name] for given in self.program.inputs],
            [(self.places[name], stored.dense(key)) for name, key in self._constants()],
            [
                (self.places[name], value)
                for name, value in self.values.items()
                if not isinstance(value, Tensor)
            ],
            self.places,
            self.lines,
        )

    def _constants(self) -> list[tuple[str, str]]:
        return list(self.program.constants.items())

    def _last_reads(self) -> dict[str, int]:
        """The last operation that reads each value; those that are returned are never dropped."""
        last: dict[str, int] = {}
        for index, operation in enumerate(self.program.operations):
            for name in [*operation.values(), *outputs_of(operation)]:
                last[name] = index
        for name in returned(self.program.outputs):
            last[name] = len(self.program.operations)
        return last

    def _append(self, index: int, step: KernelStep, since: int | None = None) -> None:
        """A step, and the values that no later operation reads."""
        begin = index if since is None else since
        dropped = [place for one in range(begin, index + 1) for place in self.dropped.get(one, ())]
        self.steps.append((step, tuple(dropped)))

    # ---- what runs where

    def _on_planes(self, operation: ProgramLayer | ProgramCall) -> ProgramLayer | Pool | None:
        if not isinstance(self.library, Library):
            return None
        if isinstance(operation, ProgramCall):
            return self._pool_of(operation)
        if operation.op == "conv2d" and not self._against(operation):
            return operation
        return None

    def _against(self, layer: ProgramLayer) -> str:
        """Why torch runs a layer; empty where a kernel does."""
        if not isinstance(self.library, Library):
            return self.library
        given, result = self.values[layer.input], self.values[layer.output]
        weight = self.weights.stored[layer.weight]
        if given.dtype != torch.float32:
            return f"its input is {given.dtype}; the kernels take float32".replace("torch.", "")
        if weight.values.dtype not in FLOATING:
            return f"its weight is {weight.values.dtype}".replace("torch.", "")
        if layer.bias is not None and self.weights.stored[layer.bias].values.dtype not in FLOATING:
            return "its bias has another type than its weight"
        if not weight.size or not given.numel() or not result.numel():
            return "it has no numbers"
        if layer.op == "linear":
            if layer.add is not None and layer.activation is not None:
                return "it has a residual sum and an activation"
            return ""
        pixels = prod(side + 2 * 64 for side in given.shape[2:])
        if max(given.shape[1], result.shape[1]) * pixels * 4 > MOST_OFFSET:
            return "its images are too large"
        span = max(s * d for s, d in zip(weight.shape[2:], layer.dilation))
        if max(span, *layer.padding) > 64:
            return "its kernel is too large"
        return ""

    def _pool_of(self, call: ProgramCall) -> Pool | None:
        """A max pool that the kernels know, where it reads what they wrote."""
        if call.function != "aten.max_pool2d.default" or call.kwargs or len(call.args) > 4:
            return None
        given, kernel, stride, padding = [*call.args, None, None][:4]
        stride, padding = stride or kernel, padding or [0, 0]
        pairs = []
        for pair in (kernel, stride, padding):
            if not isinstance(pair, list) or not pair or len(set(map(repr, pair))) != 1:
                return None
            if not isinstance(pair[0], int) or len(pair) > 2:
                return None
            pairs.append(pair[0])
        name = given.get("value") if isinstance(given, dict) else None
        value = self.values.get(name) if name else None
        if not isinstance(value, Tensor) or value.dim() != 4 or value.dtype != torch.float32:
            return None
        if not value.numel() or value.shape[3] + 2 * pairs[2] > MOST_COLUMNS:
            return None
        if call.outputs[0] is None:
            return None
        return Pool(str(name), call.outputs[0], *pairs)

    # ---- steps

    def _end_segment(self, waiting: list[tuple[int, ProgramLayer | Pool]]) -> None:
        """The operations that wait become one segment; pools alone stay with torch."""
        if not waiting:
            return
        first, last = waiting[0][0], waiting[-1][0]
        operations = [operation for _, operation in waiting]
        if not any(isinstance(operation, ProgramLayer) for operation in operations):
            for index, _ in waiting:
                call = self.program.operations[index]
                assert isinstance(call, ProgramCall)
                self._append(index, self._call(index, call))
            waiting.clear()
            return
        assert isinstance(self.library, Library)
        for operation in operations:
            if isinstance(operation, ProgramLayer):
                self._line(operation, "sparse")
        sources = Sources(
            self.values,
            self.weights.stored,
            self.weights.kept,
            self.weights.bias,
            self.weights.generated,
            self.library,
            self.threads,
            int(self.values[operations[0].input].shape[0]),
            self.kernels,
        )
        escaping = {o.output for o in operations if self.last[o.output] > last}
        step = Builder(operations, sources, escaping).build(self.places)
        self._append(last, step, since=first)
        waiting.clear()

    def _call(self, index: int, call: ProgramCall) -> TorchCall:
        place = place_of(index, call)
        slots = {
            name: value if isinstance(value, (int, type(None))) else Place(self.places[name])
            for name, value in ((name, self.values[name]) for name in call.values())
        }
        tensors = {name: self.weights.dense(name) for name in self._tensors(call)}
        args = decode(call.args, slots, tensors, place)
        kwargs = {key: decode(value, slots, tensors, place) for key, value in call.kwargs.items()}
        outputs = [None if name is None else self.places[name] for name in call.outputs]
        return TorchCall(function_of(call.function, place), args, kwargs, outputs, place)

    def _attention(self, index: int, call: ProgramCall) -> KernelStep:
        """The kernel, or torch where a trial shows that it is faster."""
        by_torch = self._call(index, call)
        if not isinstance(self.library, Library):
            return by_torch
        by_kernel = AttentionCall(by_torch, self.library, self.threads)
        if self.kernels != "auto":
            return by_kernel
        values: list[Any] = [None] * len(self.places)
        for name in call.values():
            value = self.values[name]
            is_tensor = isinstance(value, Tensor)
            values[self.places[name]] = (
                torch.zeros(value.shape, dtype=value.dtype) if is_tensor else value
            )
        steps = (by_kernel, by_torch)
        return steps[fastest([partial(step.run, values) for step in steps])]

    def _tensors(self, call: ProgramCall) -> set[str]:
        return {*named(call.args, "tensor"), *named(call.kwargs, "tensor")}

    def _layer(self, layer: ProgramLayer) -> KernelStep:
        reason = self._against(layer)
        places = (
            self.places[layer.input],
            None if layer.add is None else self.places[layer.add],
            self.places[layer.output],
        )
        if reason:
            self._line(layer, "torch", reason)
            dtype = self.values[layer.input].dtype
            bias = None if layer.bias is None else self.weights.dense(layer.bias, dtype)
            return TorchLayer(layer, self.weights.dense(layer.weight, dtype), bias, *places)
        self._line(layer, "sparse")
        assert isinstance(self.library, Library)
        shape = tuple(self.values[layer.input].shape)
        rows = prod(shape[:-1])
        kept, bias_array = self.weights.kept(layer.weight), self.weights.bias(layer)
        made: list[Callable[[], LinearStep]] = []
        few = rows <= FEW_ROWS
        common = (layer, self.library, places, shape, kept, bias_array, self.threads)
        if few:
            made += [partial(SlicedLinear, *common, gathers) for gathers in GATHERS]
            if self.kernels == "auto" and self.library.lanes == AVX512:
                narrow = load_library("avx2")  # shorter slices waste fewer lanes
                if isinstance(narrow, Library):
                    own = (layer, narrow, *common[2:])
                    made += [partial(SlicedLinear, *own, gathers) for gathers in GATHERS[::2]]
        else:
            width = next((w for w in (1, 2, 4) if rows <= w * self.library.lanes), 4)
            if self.kernels != "c":
                made += self._with_code(layer, common, rows)
            made += [partial(RowsLinear, *common, w) for w in dict.fromkeys((width, 4, 6, 2))]
        if self.kernels != "auto":
            return made[0]()
        return self._fastest(layer, [one() for one in made], places, shape)

    def _with_code(
        self, layer: ProgramLayer, common: LinearArguments, rows: int
    ) -> list[Callable[[], LinearStep]]:
        """A kernel with code of the layer's own, where there is more than one vector of rows."""
        _, library, _, _, kept, bias, _ = common
        width = min(-(-rows // library.lanes), MOST_WIDTH)
        after = layer.activation if layer.activation != "gelu" else None  # kernels.c has it
        if width < 2 or not can_generate(library, kept, after):
            return []
        stride = width * library.lanes
        made = self.weights.generated(
            layer.output,
            kept,
            kept.columns.astype(np.int64) * stride,
            bias,
            Epilogue(4 * stride, 0, False, after),
        )
        if made is None:
            return []

        def step() -> LinearStep:
            rows_step = RowsLinear(*common, width)
            rows_step.use_code(made)
            return rows_step

        return [step]

    def _fastest(
        self, layer: ProgramLayer, found: list[LinearStep], places: Places, shape: tuple[int, ...]
    ) -> KernelStep:
        """The fastest kernel of a linear layer, torch among them."""
        bias = None if layer.bias is None else self.weights.dense(layer.bias, torch.float32)
        weight = self.weights.stored[layer.weight]
        dense = weight.dense(torch.float32)
        steps: list[KernelStep] = [*found, TorchLayer(layer, dense, bias, *places)]
        values: list[Any] = [None] * len(self.places)
        values[places[0]] = torch.zeros(shape)
        if places[1] is not None:
            values[places[1]] = torch.zeros((*shape[:-1], weight.shape[0]))
        best = fastest([partial(step.run, values) for step in steps])
        if best == len(found):
            self.lines.pop()
            self._line(layer, "torch", "it was faster in a trial")
        return steps[best]

    def _line(self, layer: ProgramLayer, where: str, reason: str = "") -> None:
        weight = self.weights.stored[layer.weight]
        op = "depthwise" if is_depthwise(layer, weight.shape) else layer.op
        line = Line(layer.layer, op, weight.shape, weight.num_nonzero, where, reason)
        self.lines.append(line)
