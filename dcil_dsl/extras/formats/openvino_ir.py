"""The formats `openvino` and `openvino-int8`: a folder with OpenVINO's own two files.

In:   a Deployed network; or such a folder.
Out:  openvino.xml and openvino.bin, in float32 or int8, and dcil.json; the weights read back.
Not:  the network is converted from its ONNX form, which onnx_file.py and onnx_int8.py make.

dcil.json holds the Origin, where the weights lie, and a sha256 of the graph. The files cannot ask
for sparse weights decompression: the program that loads them does.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed, Origin
from dcil_dsl.extras.formats.graph import (
    batch_report,
    flat,
    largest_difference,
    refuse_uncounted,
    write_bytes,
)
from dcil_dsl.extras.formats.onnx_file import Places, build_onnx
from dcil_dsl.extras.formats.onnx_int8 import build_int8
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.checkpoint import digest
from dcil_dsl.training.files import write_text

GRAPH, WEIGHTS, HEADER = "openvino.xml", "openvino.bin", "dcil.json"
MOST_TEXT = 1 << 26  # bytes of dcil.json


class IrHeader(BaseModel):
    """dcil.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin | None
    names: Places
    graph: str


class OpenVino:
    """A folder with a network in float32."""

    def write(self, deployed: Deployed, place: Path) -> str:
        import openvino  # noqa: F401  before the export takes its time

        dense, places, inputs, is_free = build_onnx(deployed)
        model = convert(dense)
        run = _compiled(model)
        difference = largest_difference(deployed, inputs, run, is_free)
        save_ir(model, places, deployed, place)
        return f"largest difference in OpenVINO {difference:.1e}; {batch_report(inputs, is_free)}"

    def recognises(self, place: Path) -> bool:
        return (place / GRAPH).is_file()

    def read(self, place: Path) -> Artefact:
        """Batch norms are part of the weights: the numbers are not the run's."""
        header = _read_header(place)
        places = {} if header is None else header.names
        tensors = _named_constants(read_model(place), places, place)
        origin = None if header is None else header.origin
        return Artefact(place, tensors, origin, exact=False, complete=False)

    def verify(self, artefact: Artefact) -> list[str]:
        header = _read_header(artefact.file)
        if header is not None and header.graph != _sha256(artefact.file / GRAPH):
            return ["the graph is not the one that was exported: its digest differs"]
        return []


class OpenVinoInt8(OpenVino):
    """A folder with a network in int8."""

    def write(self, deployed: Deployed, place: Path) -> str:
        import openvino  # noqa: F401  before the export takes its time

        coded, places, report = build_int8(deployed, place)
        save_ir(convert(coded), places, deployed, place)
        return report

    def recognises(self, place: Path) -> bool:
        return False  # `openvino` reads these folders too


def convert(model: Any) -> Any:
    """OpenVINO's Model of a ModelProto."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(model.SerializeToString())
        try:
            return openvino.convert_model(file)
        except Exception as error:  # of many types
            fact = " ".join(str(error).split())[:200]
            raise InputError(f"OpenVINO cannot convert the network: {fact}") from None


def _compiled(model: Any) -> Any:
    """A function from inputs to outputs, in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def run(given: Inputs) -> list[Tensor]:
        found = compiled([tensor.contiguous().numpy() for tensor in flat(given)])
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    return run


def save_ir(model: Any, places: Places, deployed: Deployed, place: Path) -> None:
    """The two files, then the header: a folder without it promises nothing."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder)
        openvino.save_model(model, draft / GRAPH, compress_to_fp16=False)
        read = _named_constants(read_model(draft), places, draft)
        refuse_uncounted(deployed, read)  # it folds some constants into others
        origin = deployed.origin
        if origin is not None:
            origin = origin.model_copy(update={"digest": digest(read)})
        names = {name: places[name] for name in read}
        header = IrHeader(origin=origin, names=names, graph=_sha256(draft / GRAPH))
        for name in (WEIGHTS, GRAPH):
            write_bytes(place / name, (draft / name).read_bytes())
    write_text(place / HEADER, header.model_dump_json())


def _read_header(place: Path) -> IrHeader | None:
    file = place / HEADER
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > MOST_TEXT:
            raise InputError(f"{file} is too large")
        return IrHeader.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file} is damaged: {first_fault(error)}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def read_model(place: Path) -> Any:
    """The Model of a folder. InputError where a file is missing or damaged."""
    import openvino

    if not (place / WEIGHTS).is_file():
        raise InputError(f"there is no {WEIGHTS} in {place}")
    try:
        return openvino.Core().read_model(place / GRAPH, place / WEIGHTS)
    except Exception as error:  # of many types
        fact = " ".join(str(error).split())[:300]
        raise InputError(f"{place / GRAPH} is damaged: {fact}") from None


def _named_constants(model: Any, places: Places, place: Path) -> dict[str, Tensor]:
    """The weights that an operation reads, under the original's names, as the numbers that they
    stand for: (code - zero point) * scale of an integer weight."""
    held = {
        op.get_friendly_name(): op
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.output(0).get_target_inputs()
    }
    found = {}
    for name, (constant, is_turned) in places.items():
        if constant in held:
            tensor = _meaning(held[constant], place)
            found[name] = tensor.T.contiguous() if is_turned else tensor
    return found


def _meaning(constant: Any, place: Path) -> Tensor:
    """The number that every operation after it sees."""
    array = np.array(constant.data)
    if array.dtype.kind == "f":
        return torch.from_numpy(array)
    meaning, op = array.astype(np.float64), constant
    while True:
        readers = list(op.output(0).get_target_inputs())
        if len(readers) != 1:
            raise InputError(f"{place}: an integer weight has {len(readers)} readers")
        op, at = readers[0].get_node(), readers[0].get_index()
        kind = op.get_type_name()
        if kind == "Convert":
            continue
        if kind not in ("Subtract", "Multiply") or at != 0:
            break
        other = _constant_before(op.input_value(1).get_node())
        if other is None:
            break
        with np.errstate(all="ignore"):
            meaning = meaning - other if kind == "Subtract" else meaning * other
    if meaning.shape != array.shape:
        raise InputError(f"{place}: scales do not fit an integer weight")
    return torch.from_numpy(meaning.astype(np.float32))


def _constant_before(op: Any) -> np.ndarray[Any, Any] | None:
    while op.get_type_name() == "Convert":
        op = op.input_value(0).get_node()
    return np.array(op.data, np.float64) if op.get_type_name() == "Constant" else None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
