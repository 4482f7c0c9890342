"""A network from an exported folder, as a module to call.

In:   a folder that `dcil export --to cpu` wrote.
Out:  CpuNetwork: tensors in, tensors out, on the CPU.
Not:  nothing in the folder is run or imported; it is checked as a whole before any kernel runs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.cpu.build import Instructions, Kernels, Library, load_library, warn_without
from dcil_dsl.extras.cpu.plan import KernelPlan, Line, Planner, Weights
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramInput, read_program
from dcil_dsl.extras.cpu.shapes import check_tensors, infer
from dcil_dsl.extras.cpu.storage import WEIGHTS, StoredTensor, digest_of, read_tensors

MOST_PLANS = 8  # plans for other shapes that are kept


class CpuNetwork(nn.Module):
    """An exported network. It has no parameters and cannot be trained.

    Calls from several Python threads wait for each other, because they share buffers.
    """

    def __init__(
        self,
        program: CpuProgram,
        stored: Mapping[str, StoredTensor],
        kernels: Kernels = "auto",
        threads: int | None = None,
        instructions: Instructions = "native",
    ):
        super().__init__()
        self.program, self.stored = program, dict(stored)
        self.threads, self.kernels = threads, kernels
        self.library: Library | str = "kernels='torch' was given"
        if kernels != "torch":
            self.library = load_library(instructions)
            if isinstance(self.library, str):
                warn_without(self.library)
        self._weights = Weights(self.stored)
        self._plans: OrderedDict[object, KernelPlan] = OrderedDict()
        self._lock = threading.Lock()

    @torch.no_grad()
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """The outputs, as the original gives them; of its own output classes as a dict."""
        given = self._bind(args, kwargs)
        with self._lock:
            plan = self._plan([tuple(tensor.shape) for tensor in given])
            values: list[Any] = [None] * len(plan.places)
            for place, tensor in zip(plan.inputs, given):
                values[place] = tensor
            for place, tensor in plan.constants:
                values[place] = tensor
            for place, number in plan.integers:
                values[place] = number
            for step, dropped in plan.steps:
                step.run(values)
                for place in dropped:
                    values[place] = None
            return _built(self.program.outputs, values, plan.places)

    def lines(self, *shapes: tuple[int, ...]) -> list[Line]:
        """Where each layer runs, for a batch of one or for inputs of these shapes."""
        with self._lock:
            return self._plan(list(shapes) or default_shapes(self.program)).lines

    def _plan(self, shapes: list[tuple[int, ...]]) -> KernelPlan:
        threads = self.threads or torch.get_num_threads()
        key = (threads, *shapes)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        names = [given.name for given in self.program.inputs]
        planner = Planner(
            self.program,
            self._weights,
            dict(zip(names, shapes)),
            self.library,
            threads,
            self.kernels,
        )
        plan = self._plans[key] = planner.plan()
        while len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)
        return plan

    def _bind(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors of a call in the order of the inputs. InputError for any that do not fit."""
        inputs = self.program.inputs
        if len(args) > len(inputs):
            raise InputError(f"{len(args)} inputs are given, and the network takes {len(inputs)}")
        given: dict[str, Tensor] = dict(zip((one.name for one in inputs), args))
        for name, tensor in kwargs.items():
            if name in given or name not in {one.name for one in inputs}:
                why = "is given twice" if name in given else "is not an input of the network"
                raise InputError(f"`{name}` {why}")
            given[name] = tensor
        for one in inputs:
            if one.name not in given:
                raise InputError(f"the input `{one.name}` is missing")
            _check(one, given[one.name])
        return [given[one.name] for one in inputs]

    def __deepcopy__(self, memo: dict[int, Any]) -> CpuNetwork:
        made = CpuNetwork(self.program, self.stored, "torch", self.threads)
        made.library, made.kernels = self.library, self.kernels
        return made

    def __reduce__(self) -> Any:
        raise TypeError("a CpuNetwork is loaded from its folder, never from a pickle")


def _check(one: ProgramInput, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"the input `{one.name}` is a {type(tensor).__name__}, not a tensor")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise InputError(f"the input `{one.name}` is not a dense tensor on the CPU")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != one.dtype:
        raise InputError(f"the input `{one.name}` is {dtype}, and the network takes {one.dtype}")
    sizes = list(tensor.shape)
    if len(sizes) != len(one.shape) or any(
        want is not None and have != want for have, want in zip(sizes, one.shape)
    ):
        want = ["batch" if size is None else size for size in one.shape]
        raise InputError(
            f"the input `{one.name}` has the shape {sizes}, and the network takes "
            f"[{', '.join(map(str, want))}]"
        )


def _built(structure: Any, values: list[Any], places: Mapping[str, int]) -> Any:
    """The outputs of a call in their structure."""
    (kind, inner), *_ = structure.items()
    if kind == "value":
        return values[places[inner]]
    if kind == "constant":
        return inner
    if kind == "dict":
        return {key: _built(part, values, places) for key, part in inner.items()}
    parts = [_built(part, values, places) for part in inner]
    return parts if kind == "list" else tuple(parts)


def default_shapes(program: CpuProgram, batch: int = 1) -> list[tuple[int, ...]]:
    """The shapes of the inputs for one size of batch."""
    return [
        tuple(batch if size is None else size for size in given.shape) for given in program.inputs
    ]


def read_network(folder: str | Path) -> tuple[CpuProgram, dict[str, StoredTensor]]:
    """Read and check both files of a folder. InputError where anything does not fit."""
    program = read_program(folder)
    stored = read_tensors(Path(folder) / WEIGHTS)
    check_tensors(program, stored)
    if digest_of(stored) != program.digest:
        raise InputError(
            f"{Path(folder) / WEIGHTS} does not hold the tensors that the program was written for",
            help="the two files belong together: export them again",
        )
    names = [given.name for given in program.inputs]
    infer(program, stored, dict(zip(names, default_shapes(program))))
    return program, stored


def load_cpu(
    folder: str | Path,
    kernels: Kernels = "auto",
    threads: int | None = None,
    instructions: Instructions = "native",
) -> CpuNetwork:
    """The network of a folder that `dcil export --to cpu` wrote.

    kernels       `auto`: the fastest on this machine, tried when a shape is first seen; `c`: those
                  in C; `generated`: machine code of each layer where there can be any; `torch`:
                  none
    threads       of the kernels; default: those of torch
    instructions  `avx2` or `portable` hold the kernels back, for comparisons

    InputError where the folder is damaged or holds more than data.
    """
    program, stored = read_network(folder)
    return CpuNetwork(program, stored, kernels, threads, instructions)
