"""An exported file or folder of an engine's own format, timed as it is.

In:   a place that `dcil export --to onnx|openvino|executorch` wrote, or their forms in int8.
Out:  a Subject for the engines that read it, and their names.
Not:  no .pt2: torch.export.load evaluates expressions of a file. The engine `torch-export` times
      the network of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.exporters import recognise
from dcil_dsl.extras.bench.engines import Missing, Subject
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramInput
from dcil_dsl.extras.cpu.storage import StoredTensor
from dcil_dsl.jobs.example import MOST_NUMBERS

Signature = tuple[list[ProgramInput], bool]  # the inputs, and whether the weights are int8


def timed_format(place: Path) -> str | None:
    """The name of the format of `place`, where engines read it as it is."""
    found = recognise(place)
    return found.name if found is not None and found.name in FORMATS else None


def engines_for(place: Path) -> tuple[str, ...]:
    """The engines that read the file. InputError for a damaged one."""
    name = timed_format(place)
    assert name is not None
    try:
        read, in_float, in_int8 = FORMATS[name]
        _, is_int8 = read(place)
    except ImportError as error:
        raise InputError(f"{place} needs the library `{error.name}`") from None
    return in_int8 if is_int8 else in_float


class ExportedSubject(Subject):
    """One file with inputs of one batch size."""

    def __init__(self, place: str | Path, batch: int, threads: int):
        self.place, self.examples, self.work, self.shared = Path(place), None, None, {}
        self.format = timed_format(self.place)
        assert self.format is not None
        self.given, self.is_int8 = FORMATS[self.format][0](self.place)
        self._set(batch, threads)

    def _set(self, batch: int, threads: int) -> None:
        sizes = {one.shape[0] for one in self.given if one.shape} - {None, batch}
        if sizes:
            raise Missing(f"the file takes batches of {sizes.pop()} alone")
        super()._set(batch, threads)

    def onnx(self) -> Path:
        return self._file("onnx", False)

    def onnx_int8(self) -> Path:
        return self._file("onnx", True)

    def openvino(self, int8: bool) -> Path:
        if self.format == "onnx":
            return self._file("onnx", int8)
        return self._file("openvino", int8) / "openvino.xml"

    def executorch(self) -> bytes:
        return (self._file("executorch", self.is_int8) / "network.pte").read_bytes()

    def sparse(self) -> tuple[CpuProgram, dict[str, StoredTensor]]:
        raise Missing(f"it does not run {self.place}")

    def module(self) -> Any:
        raise Missing(f"it does not run {self.place}")

    def _file(self, format: str, int8: bool) -> Path:
        if (self.format, self.is_int8) != (format, int8):
            raise Missing(f"it does not run {self.place}")
        return self.place


def _of_onnx(place: Path) -> Signature:
    import onnx

    from dcil_dsl.extras.formats.onnx_file import load_onnx

    model = load_onnx(place)
    given = []
    for one in model.graph.input:
        tensor = one.type.tensor_type
        sizes = [dim.dim_value or None for dim in tensor.shape.dim]
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        except KeyError:
            dtype = "unknown"
        given.append(_input(one.name, sizes, dtype, place))
    return given, any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _of_openvino(place: Path) -> Signature:
    from dcil_dsl.extras.formats.openvino_ir import read_model

    model = read_model(place)
    given = []
    for one in model.inputs:
        sizes = [None if dim.is_dynamic else dim.get_length() for dim in one.partial_shape]
        dtype = one.element_type.to_dtype().name
        given.append(_input(one.any_name, sizes, dtype, place))
    types = {
        op.get_element_type().get_type_name()
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    }
    return given, "i8" in types


def _of_executorch(place: Path) -> Signature:
    from executorch.runtime import Runtime

    from dcil_dsl.extras.formats.graph import fact_of
    from dcil_dsl.extras.formats.lowered import LOWERED, LoweredFolder

    faults = LoweredFolder().verify(LoweredFolder().read(place))
    if faults:
        raise InputError(f"{place} is damaged: {faults[0]}")
    try:
        metadata = Runtime.get().load_program(place / LOWERED).metadata("forward")
    except Exception as error:  # of many types
        raise InputError(f"{place / LOWERED} is damaged: {fact_of(error)}") from None
    given = []
    for at in range(metadata.num_inputs()):
        one = metadata.input_tensor_meta(at)
        dtype = str(SCALAR_TYPES.get(one.dtype())).removeprefix("torch.")
        given.append(_input(f"input_{at}", list(one.sizes()), dtype, place))
    return given, False


SCALAR_TYPES = {  # as ExecuTorch numbers them
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


def _input(name: str, sizes: list[int | None], dtype: str, place: Path) -> ProgramInput:
    """InputError where a size other than the batch is open, or a type that no noise has."""
    if any(size is None for size in sizes[1:]) or not hasattr(torch, dtype):
        raise InputError(f"the input `{name}` of {place} has no shape or type of its own")
    if any(size is not None and not 0 < size <= MOST_NUMBERS for size in sizes) or (
        prod(size or 1 for size in sizes) > MOST_NUMBERS
    ):
        raise InputError(f"the input `{name}` of {place} is too large to be tried: {sizes}")
    return ProgramInput.model_construct(name=name, shape=sizes, dtype=dtype)


OPENVINO = ("openvino", "openvino-bf16")
OPENVINO_INT8 = ("openvino-int8", "openvino-int8-sparse")
# A format -> how its inputs are found, the engines of float32, the engines of int8.
FORMATS: dict[str, tuple[Callable[[Path], Signature], tuple[str, ...], tuple[str, ...]]] = {
    "onnx": (_of_onnx, ("onnxruntime", *OPENVINO), ("onnxruntime-int8", *OPENVINO_INT8)),
    "openvino": (_of_openvino, OPENVINO, OPENVINO_INT8),
    "executorch": (_of_executorch, ("executorch",), ()),
}
