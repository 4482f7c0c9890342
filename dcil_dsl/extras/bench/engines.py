"""The engines that run an exported network, each as a function of no arguments to call.

In:   a folder that `dcil export --to cpu` wrote, a batch size, a number of threads; other files are
      in exported.py.
Out:  a callable that runs the network once; Missing where the engine is not installed.
Not:  nothing is timed here (measure.py).

Engines other than ours get the network with dense weights, its norms folded, as ours gets it.
"""

from __future__ import annotations

import copy
import importlib
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.cpu.build import Instructions
from dcil_dsl.extras.cpu.network import CpuNetwork, default_shapes, read_network
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramInput, ProgramLayer
from dcil_dsl.extras.cpu.replay import as_module
from dcil_dsl.extras.cpu.storage import StoredTensor, compress
from dcil_dsl.model.inputs import Inputs

Run = Callable[[], object]
CALIBRATION = 8  # batches that int8 is calibrated on


class Missing(Exception):
    """The engine cannot run here; the message says why."""


class Subject:
    """One network with inputs of one batch size.

    work         a folder for files that engines of the same network share; None: nothing is shared
    calibration  a file that `write_calibration` wrote, for int8; None: noise
    shared       what an engine keeps between subjects of the same network
    """

    def __init__(
        self,
        folder: str | Path,
        batch: int,
        threads: int,
        work: str | Path | None = None,
        calibration: str | Path | None = None,
    ):
        self.program, self.stored = read_network(folder)
        self.given = self.program.inputs
        self.work = None if work is None else Path(work)
        self.examples = None if calibration is None else load_file(calibration)
        self.shared: dict[str, Any] = {}
        self._set(batch, threads)

    def of(self, batch: int, threads: int) -> Subject:
        """The same network with inputs of another size."""
        other = copy.copy(self)
        other._set(batch, threads)
        return other

    def _set(self, batch: int, threads: int) -> None:
        self.batch, self.threads = batch, threads
        self.inputs = list(self.noise(1))[0]

    def noise(self, count: int) -> Iterator[list[Tensor]]:
        """Random inputs: normal numbers, zeros and ones for whole numbers."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield [
                _drawn(given, [size or self.batch for size in given.shape], generator)
                for given in self.given
            ]

    def calibrating(self) -> Iterator[list[Tensor]]:
        """Batches to calibrate int8 on: the examples, from the first again after the last."""
        if self.examples is None:
            yield from self.noise(CALIBRATION)
            return
        inputs = [self.examples[given.name] for given in self.given]
        for number in range(CALIBRATION):
            rows = torch.arange(number * self.batch, (number + 1) * self.batch) % len(inputs[0])
            yield [given[rows] for given in inputs]

    def sparse(self) -> tuple[CpuProgram, dict[str, StoredTensor]]:
        """What the sparse kernels run. Missing for a file of another engine."""
        return self.program, self.stored

    def module(self) -> fx.GraphModule:
        shapes = default_shapes(self.program, self.batch)
        names = [given.name for given in self.program.inputs]
        return as_module(self.program, self.stored, dict(zip(names, shapes)))

    def file(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file for this batch size in `work`, made by the first engine that asks for it."""
        if self.work is None:
            self.work = Path(tempfile.mkdtemp(prefix="dcil-bench-"))
            weakref.finalize(self, shutil.rmtree, self.work, True)
        file = self.work / f"{name}-{self.batch}.onnx"
        if not file.exists():
            draft = file.with_name(f"{name}-{self.batch}.draft.onnx")
            make(draft)
            draft.replace(file)
        return file

    def onnx(self) -> Path:
        """The network as an ONNX file."""
        _need("onnx"), _need("onnxscript")

        def make(file: Path) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self.module(),
                    tuple(self.inputs),
                    str(file),
                    dynamo=True,
                    verbose=False,
                    external_data=False,
                )

        return self.file("net", make)

    def onnx_int8(self) -> Path:
        """The network in int8, as nodes that quantize and dequantize."""
        tools = _need("onnxruntime.quantization")
        source = self.onnx()
        batches = (self.arrays(inputs) for inputs in self.calibrating())

        class EngineReader(tools.CalibrationDataReader):  # type: ignore[name-defined, misc]
            def get_next(self) -> Any:
                return next(batches, None)

        def make(file: Path) -> None:
            with _quiet():
                tools.quantize_static(str(source), str(file), EngineReader(), per_channel=True)

        return self.file("int8", make)

    def openvino(self, int8: bool) -> Path:
        """The file that OpenVINO reads."""
        return self.onnx_int8() if int8 else self.onnx()

    def executorch(self) -> bytes:
        """The network as a .pte file of ExecuTorch, of this batch size alone."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        from dcil_dsl.extras.formats.executorch_file import lower

        program = torch.export.export(self.module(), tuple(self.inputs))
        return lower(program, XnnpackPartitioner(), "the network")[0]

    def arrays(self, inputs: list[Tensor]) -> dict[str, Any]:
        return {given.name: x.numpy() for given, x in zip(self.given, inputs)}


def write_calibration(program: CpuProgram, batches: Iterable[Inputs], file: Path) -> int:
    """Store the inputs of batches of data for `Subject`; returns the number of examples.

    InputError where the data do not give what the network takes.
    """
    found: dict[str, list[Tensor]] = {given.name: [] for given in program.inputs}
    for batch in batches:
        by_name = dict(zip((given.name for given in program.inputs), batch.args)) | batch.kwargs
        for given in program.inputs:
            tensor = by_name.get(given.name)
            if not isinstance(tensor, Tensor) or list(tensor.shape[1:]) != given.shape[1:]:
                raise InputError(f"the data do not give the input `{given.name}` of the network")
            found[given.name].append(tensor.detach().cpu().to(getattr(torch, given.dtype)))
    joined = {name: torch.cat(parts).contiguous() for name, parts in found.items() if parts}
    if len(joined) < len(found) or not all(map(len, joined.values())):
        raise InputError("the data have no example")
    save_file(joined, file)
    return min(map(len, joined.values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime logs for every model."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _drawn(given: ProgramInput, shape: list[int], generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, given.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(f"{name} is not installed") from None


# ---- ours


def _ours(
    subject: Subject,
    stored: dict[str, StoredTensor] | None = None,
    instructions: Instructions = "native",
) -> Run:
    network = subject.shared.get("network")
    if network is None:
        program, own = subject.sparse()
        network = CpuNetwork(program, stored or own, "auto", None, instructions)
        subject.shared["network"] = network
    if isinstance(network.library, str):
        raise Missing(network.library)
    network.threads = subject.threads
    return lambda: network(*subject.inputs)


def _ours_bfloat16(subject: Subject) -> Run:
    return _ours(subject, _in_bfloat16(*subject.sparse()))


def _ours_avx2(subject: Subject) -> Run:
    return _ours(subject, instructions="avx2")


def _in_bfloat16(program: CpuProgram, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The weights of layers in bfloat16."""
    layers = {op.weight for op in program.operations if isinstance(op, ProgramLayer)}
    return {
        name: compress(entry.dense(), torch.bfloat16)
        if name in layers and entry.values.dtype == torch.float32
        else entry
        for name, entry in stored.items()
    }


# ---- torch


def _torch(subject: Subject) -> Run:
    module = subject.module()
    return _without_gradients(lambda: module(*subject.inputs))


def _torch_compiled(subject: Subject) -> Run:
    module = torch.compile(subject.module())
    return _without_gradients(lambda: module(*subject.inputs))


def _torch_export(subject: Subject) -> Run:
    program = torch.export.export(subject.module(), tuple(subject.inputs)).module()
    return _without_gradients(lambda: program(*subject.inputs))


def _without_gradients(run: Run) -> Run:
    def call() -> object:
        with torch.inference_mode():
            return run()

    return call


# ---- ONNX Runtime


def _onnxruntime(subject: Subject) -> Run:
    return _session(subject, subject.onnx)


def _onnxruntime_int8(subject: Subject) -> Run:
    return _session(subject, subject.onnx_int8)


def _session(subject: Subject, file: Callable[[], Path]) -> Run:
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = subject.threads
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(file()), options, providers=["CPUExecutionProvider"])
    given = subject.arrays(subject.inputs)
    return lambda: session.run(None, given)


# ---- OpenVINO


def _openvino(
    subject: Subject, precision: str = "f32", int8: bool = False, sparse: float = 0.0
) -> Run:
    openvino = _need("openvino")
    file = subject.openvino(int8)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": subject.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    if sparse:
        settings["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = sparse
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()
    given = list(subject.arrays(subject.inputs).values())
    return lambda: request.infer(given)


def _openvino_bfloat16(subject: Subject) -> Run:
    return _openvino(subject, "bf16")


def _openvino_int8(subject: Subject) -> Run:
    return _openvino(subject, int8=True)


def _openvino_int8_sparse(subject: Subject) -> Run:
    return _openvino(subject, int8=True, sparse=0.5)


# ---- ExecuTorch


def _executorch(subject: Subject) -> Run:
    _need("executorch")
    program = _need("executorch.runtime").Runtime.get().load_program(subject.executorch())
    method = program.load_method("forward")

    def run() -> Any:
        assert program is not None  # the method reads its memory, and does not keep it
        return method.execute(subject.inputs)

    return run


ENGINES: dict[str, tuple[str, Callable[[Subject], Run]]] = {
    "dcil": ("sparse kernels of dcil", _ours),
    "dcil-bf16": ("the same, weights in bfloat16", _ours_bfloat16),
    "dcil-avx2": ("the same, AVX2 alone", _ours_avx2),
    "torch": ("torch, eager, dense", _torch),
    "torch-compiled": ("torch.compile, dense", _torch_compiled),
    "torch-export": ("torch.export, dense", _torch_export),
    "onnxruntime": ("ONNX Runtime, float32, dense", _onnxruntime),
    "onnxruntime-int8": ("ONNX Runtime, int8, dense", _onnxruntime_int8),
    "openvino": ("OpenVINO, float32, dense", _openvino),
    "openvino-bf16": ("OpenVINO, bfloat16, dense", _openvino_bfloat16),
    "openvino-int8": ("OpenVINO, int8, dense", _openvino_int8),
    "openvino-int8-sparse": (
        "OpenVINO, int8, sparse weights decompression",
        _openvino_int8_sparse,
    ),
    "executorch": ("ExecuTorch with XNNPACK, float32, dense", _executorch),
}
