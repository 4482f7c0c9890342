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
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed, Origin
from dcil_dsl.extras.formats.graph import (
    compare,
    fact_of,
    flat,
    refuse_broadcast,
    refuse_uncounted,
    turned,
    write_bytes,
)
from dcil_dsl.extras.formats.onnx_file import Places, build_onnx, named_weights
from dcil_dsl.extras.formats.onnx_int8 import build_int8
from dcil_dsl.model.digest import digest
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.files import write_text

GRAPH, WEIGHTS, HEADER = "openvino.xml", "openvino.bin", "dcil.json"
MOST_TEXT = 1 << 26  # bytes of dcil.json


class IrHeader(BaseModel):
    """dcil.json.

    shapes  of the weights that the folder stores in another shape
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin | None
    names: Places
    shapes: dict[str, tuple[NonNegativeInt, ...]] = {}
    graph: str


class OpenVino:
    """A folder with a network in float32."""

    def write(self, deployed: Deployed, place: Path) -> str:
        import openvino  # noqa: F401  before the export takes its time

        dense, places, inputs, is_free = build_onnx(deployed)
        model = convert(dense)
        found = compare(deployed, inputs, _compiled(model), is_free)
        save_ir(model, dense, places, deployed, place)
        return found.report("OpenVINO")

    def recognises(self, place: Path) -> bool:
        return (place / GRAPH).is_file()

    def read(self, place: Path) -> Artefact:
        """Batch norms are part of the weights: the numbers are not the run's."""
        header = _read_header(place)
        places = {} if header is None else header.names
        shapes = {} if header is None else header.shapes
        tensors = _named_constants(read_model(place), places, shapes, place)
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

        coded, places, report = build_int8(deployed, place, lambda model: _compiled(convert(model)))
        save_ir(convert(coded), coded, places, deployed, place)
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
            raise InputError(f"OpenVINO cannot convert the network: {fact_of(error)}") from None


def _compiled(model: Any) -> Any:
    """A function from inputs to outputs, in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(model, "CPU", settings)
    except Exception as error:  # of many types
        raise InputError(f"OpenVINO cannot run the network: {fact_of(error)}") from None

    def run(given: Inputs) -> list[Tensor]:
        found = compiled([tensor.contiguous().numpy() for tensor in flat(given)])
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    return run


def save_ir(model: Any, source: Any, places: Places, deployed: Deployed, place: Path) -> None:
    """The two files, then the header: a folder without it promises nothing.

    source  the ModelProto that the Model was converted from
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder)
        openvino.save_model(model, draft / GRAPH, compress_to_fp16=False)
        stored = read_model(draft)
        places, shapes = _find_moved(stored, places, named_weights(source, places, place))
        read = _named_constants(stored, places, shapes, place)
        refuse_uncounted(deployed, read)  # it folds some constants into others
        origin = deployed.origin
        if origin is not None:
            origin = origin.model_copy(update={"digest": digest(read)})
        names = {name: places[name] for name in read}
        header = IrHeader(origin=origin, names=names, shapes=shapes, graph=_sha256(draft / GRAPH))
        for name in (WEIGHTS, GRAPH):
            write_bytes(place / name, (draft / name).read_bytes())
    write_text(place / HEADER, header.model_dump_json())


Shapes = Mapping[str, tuple[int, ...]]


def _find_moved(
    model: Any, places: Places, expected: Mapping[str, Tensor]
) -> tuple[Places, dict[str, tuple[int, ...]]]:
    """The places, and the shapes of the weights that are stored in another one.

    OpenVINO stores the weights of grouped convolutions in another shape, and multiplies a scale
    behind a layer into its weights, both under names of its own: they are found by their numbers.
    """
    held = _constants(model)
    found, shapes = dict(places), {}
    for name, (constant, _) in places.items():
        if constant in held or name not in expected:
            continue
        wanted = expected[name].numpy()
        for other, op in held.items():
            size = prod(op.output(0).get_shape())
            if size != wanted.size or op.get_element_type().to_dtype() != wanted.dtype:
                continue
            array = np.array(op.data)
            if _is_scaled(array.reshape(wanted.shape), wanted):
                found[name], shapes[name] = (other, False), tuple(wanted.shape)
                break
            if array.shape == wanted.shape[::-1] and _is_scaled(array.T, wanted):
                found[name] = (other, True)
                break
    return found, shapes


def _is_scaled(array: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    """Whether the first is the second, times one number for each index of the first or the second
    side. Their zeros are the same."""
    if array.shape != wanted.shape or not np.array_equal(array == 0, wanted == 0):
        return False
    if np.array_equal(array, wanted):
        return True
    for side in range(min(array.ndim, 2)):
        one, other = (np.moveaxis(a, side, 0).reshape(a.shape[side], -1) for a in (array, wanted))
        at = np.abs(other).argmax(1)[:, None]  # the place of the largest number of each index
        largest = np.take_along_axis(other, at, 1)
        scale = np.take_along_axis(one, at, 1) / np.where(largest == 0, 1, largest)
        if np.allclose(one, other * scale, rtol=1e-4, atol=0):
            return True
    return False


def _constants(model: Any) -> dict[str, Any]:
    """The constants that an operation reads."""
    return {
        op.get_friendly_name(): op
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.output(0).get_target_inputs()
    }


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


def _named_constants(model: Any, places: Places, shapes: Shapes, place: Path) -> dict[str, Tensor]:
    """The weights that an operation reads, under the original's names, as the numbers that they
    stand for: (code - zero point) * scale of an integer weight."""
    held, found = _constants(model), {}
    for name, (constant, is_turned) in places.items():
        if constant not in held:
            continue
        tensor = _meaning(held[constant], place)
        shape = shapes.get(name, tuple(tensor.shape))
        if prod(shape) != tensor.numel():
            raise InputError(f"{place}: `{name}` has not the shape that {HEADER} names")
        tensor = tensor.reshape(shape)
        found[name] = turned(tensor) if is_turned else tensor
    return found


def _meaning(constant: Any, place: Path) -> Tensor:
    """The number that every operation after it sees."""
    try:
        array = np.array(constant.data)
    except Exception as error:  # of many types
        raise InputError(f"{place}: a weight cannot be read: {fact_of(error)}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{place}: a weight has numbers of the type {array.dtype}")
    if array.dtype.kind == "f":
        return torch.from_numpy(array)
    left, found = [(constant, array.astype(np.float64))], None
    while left:
        op, meaning = left.pop()
        for reader in op.output(0).get_target_inputs():
            after = _after(reader, meaning)
            if after is not None:
                left.append((reader.get_node(), after))
            elif found is None:
                found = meaning
            elif not np.array_equal(found, meaning, equal_nan=True):
                raise InputError(f"{place}: two operations see an integer weight differently")
    if found is None:
        raise InputError(f"{place}: no operation sees an integer weight")
    return torch.from_numpy(found.astype(np.float32))


def _after(reader: Any, meaning: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The numbers behind an operation that is a part of dequantizing, else None."""
    op, kind = reader.get_node(), reader.get_node().get_type_name()
    if kind == "Convert":
        return meaning
    if kind not in ("Subtract", "Multiply") or reader.get_index() != 0:
        return None
    other = _constant_before(op.input_value(1).get_node())
    if other is None:
        return None
    refuse_broadcast(meaning.shape, other.shape)
    with np.errstate(all="ignore"):
        found: np.ndarray[Any, Any] = meaning - other if kind == "Subtract" else meaning * other
    return found


def _constant_before(op: Any) -> np.ndarray[Any, Any] | None:
    while op.get_type_name() == "Convert":
        op = op.input_value(0).get_node()
    return np.array(op.data, np.float64) if op.get_type_name() == "Constant" else None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
