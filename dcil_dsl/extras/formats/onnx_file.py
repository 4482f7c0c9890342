"""The format `onnx`: a .onnx file in float32, its batch norms folded into the weights.

In:   a Deployed network; or a .onnx file, also one with int8 weights.
Out:  the file, compared with the network in ONNX Runtime; its weights under the original's names.
Not:  no external data: a file is one file. int8 is made in onnx_int8.py.

The metadata of the file hold the Origin under "dcil", where the weights lie under "dcil.names", and
a sha256 of the nodes under "dcil.graph". An int8 weight is read as (code - zero point) * scale, so
that the weights that count as zero are those whose code is the zero point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import parse_origin
from dcil_dsl.extras.formats.graph import (
    compare,
    fact_of,
    flat,
    quiet,
    refuse_broadcast,
    refuse_uncounted,
    trace_for_export,
    turned,
    write_bytes,
)
from dcil_dsl.model.digest import digest
from dcil_dsl.model.inputs import Inputs

MOST_BYTES = 2**31 - 1  # of a file of protobuf
# The name of a weight -> the initializer that holds it, and whether transposed.
Places = dict[str, tuple[str, bool]]
PLACES: TypeAdapter[Places] = TypeAdapter(Places)


class Onnx:
    """A .onnx file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        model, places, inputs, is_free = build_onnx(deployed)
        found = compare(deployed, inputs, in_runtime(model), is_free)
        save_onnx(model, places, deployed, place)
        return found.report("ONNX Runtime")

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".onnx"

    def read(self, place: Path) -> Artefact:
        """Batch norms are part of the weights: the numbers are not the run's."""
        model = load_onnx(place)
        said = _metadata(model)
        origin = None if "dcil" not in said else parse_origin(said["dcil"], place)
        tensors = named_weights(model, _places(said, place), place)
        return Artefact(place, tensors, origin, exact=False, complete=False)

    def verify(self, artefact: Artefact) -> list[str]:
        model = load_onnx(artefact.file)
        said = _metadata(model)
        if "dcil.graph" in said and said["dcil.graph"] != graph_digest(model):
            return ["the graph is not the one that was exported: its digest differs"]
        return []


def build_onnx(deployed: Deployed) -> tuple[Any, Places, Inputs, bool]:
    """The ModelProto, where the weights lie, inputs to try, and whether the batch size is free."""
    import onnx
    import onnxscript  # noqa: F401  torch.onnx needs it and says so less plainly

    traced = trace_for_export(deployed)
    with quiet():
        try:
            made = torch.onnx.export(
                traced.program, (), dynamo=True, verbose=False, optimize=True, external_data=False
            )
            assert made is not None
            model = made.model_proto
        except Exception as error:  # of many types
            raise InputError(
                f"torch.onnx cannot export {deployed.source}: {fact_of(error)}"
            ) from None
    if model.ByteSize() > MOST_BYTES:
        raise InputError(f"{deployed.source} is larger than the 2 GiB of an .onnx file")
    graph = model.graph
    for node in [*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]:
        del node.metadata_props[:]  # stack traces with the paths of this machine
        node.doc_string = ""
    onnx.checker.check_model(model)
    places = _find_weights(model, deployed.tensors())
    refuse_uncounted(deployed, places)
    return model, places, traced.inputs, traced.is_free


def _find_weights(model: Any, state: Mapping[str, Tensor]) -> Places:
    """The initializers of the network's matrices and kernels.

    The exporter keeps the names, but stores some matrices transposed under names of its own.
    """
    stored = {entry.name: entry for entry in model.graph.initializer}
    shapes = {name: tuple(entry.dims) for name, entry in stored.items()}
    places: Places = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        if shapes.get(name) == shape:
            places[name] = (name, False)
            continue
        for other, theirs in shapes.items():
            if theirs == shape and torch.equal(to_tensor(stored[other]), tensor):
                places[name] = (other, False)
            elif theirs == shape[::-1] and tensor.dim() == 2:
                if torch.equal(to_tensor(stored[other]), tensor.T):
                    places[name] = (other, True)
            if name in places:
                break
    return places


def save_onnx(model: Any, places: Places, deployed: Deployed, place: Path) -> None:
    """Write the model with its metadata. The digest is of the weights as they are read back."""
    said = {"dcil.names": PLACES.dump_json(places).decode(), "dcil.graph": graph_digest(model)}
    if deployed.origin is not None:
        read = named_weights(model, places, place)
        named = deployed.origin.model_copy(update={"digest": digest(read)})
        said["dcil"] = named.model_dump_json()
    for key, value in said.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    write_bytes(place, model.SerializeToString())


def load_onnx(place: Path) -> Any:
    """The ModelProto. InputError for a damaged file and for data in other files."""
    import onnx

    try:
        model = onnx.load(place, load_external_data=False)
    except Exception as error:  # protobuf's own, of several types
        fact = " ".join(str(error).split())[:200]
        raise InputError(f"{place} is damaged: {fact or type(error).__name__}") from None
    if not model.graph.node and not model.graph.initializer:
        raise InputError(f"{place} holds no network")
    for tensor in _tensors_of(model.graph, model.functions):
        if tensor.data_location == 1 or len(tensor.external_data):
            raise InputError(f"{place}: `{tensor.name}` lies in another file, which is not read")
    return model


def _tensors_of(graph: Any, functions: Any) -> Iterator[Any]:
    """Every stored tensor of graphs and functions, also in the bodies of loops and branches."""
    left = [graph, *functions]
    while left:
        part = left.pop()
        yield from getattr(part, "initializer", ())
        for sparse in getattr(part, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in part.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                left += [attribute.g, *attribute.graphs]


def graph_digest(model: Any) -> str:
    """A sha256 of the nodes, of what they call, and of the network's inputs and outputs."""
    total = hashlib.sha256()
    graph = model.graph
    for part in [*graph.node, *graph.input, *graph.output, *model.functions, *model.opset_import]:
        total.update(part.SerializeToString(deterministic=True))
    return total.hexdigest()


def named_weights(model: Any, places: Places, place: Path) -> dict[str, Tensor]:
    """The initializers that a node reads: matrices under the original's names, all others under
    their own; int8 weights as the numbers that they stand for."""
    stored = {entry.name: entry for entry in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    tensors: dict[str, Tensor] = {}
    part_of: set[str] = set()
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "DequantizeLinear" and names and names[0] in stored:
            if len(names) < 2:
                raise InputError(f"{place}: the scales of `{names[0]}` are missing")
            part_of |= set(names)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            meaning = _dequantise([_initializer(stored, n, place) for n in names], axis)
            if not torch.equal(tensors.setdefault(names[0], meaning), meaning):
                raise InputError(f"{place}: two nodes give `{names[0]}` different scales")
    for name in stored:
        if name in read and name not in part_of:
            tensors[name] = _initializer(stored, name, place)
    moved = {initializer for initializer, _ in places.values()}
    found = {name: tensor for name, tensor in tensors.items() if name not in moved}
    for name, (initializer, is_transposed) in places.items():
        if initializer in tensors:
            tensor = tensors[initializer]
            found[name] = turned(tensor) if is_transposed else tensor
    return found


def _dequantise(parts: list[Tensor], axis: int) -> Tensor:
    """(code - zero point) * scale, each one number or one for each index of the axis."""
    codes, scale = parts[:2]
    zero = parts[2] if len(parts) > 2 else torch.zeros((), dtype=codes.dtype)
    if codes.is_floating_point() or zero.is_floating_point():
        raise InputError("a weight that is dequantised has no whole numbers")
    side = [1] * codes.dim()
    if -codes.dim() <= axis < codes.dim():
        side[axis] = -1
    scale, zero = (part.reshape(side) if part.dim() == 1 else part for part in (scale, zero))
    refuse_broadcast(tuple(codes.shape), tuple(scale.shape), tuple(zero.shape))
    return ((codes.to(torch.int64) - zero.to(torch.int64)) * scale.double()).float()


def _initializer(stored: Mapping[str, Any], name: str, place: Path) -> Tensor:
    entry = stored.get(name)
    if entry is None:
        raise InputError(f"{place}: `{name}` is not a constant of the network")
    try:
        return to_tensor(entry)
    except Exception as error:  # of many types
        fact = " ".join(str(error).split())[:200]
        raise InputError(f"{place}: `{name}` is damaged: {fact}") from None


def to_tensor(entry: Any) -> Tensor:
    from onnx import numpy_helper

    array: np.ndarray[Any, Any] = np.array(numpy_helper.to_array(entry))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _places(said: Mapping[str, str], place: Path) -> Places:
    try:
        return PLACES.validate_json(said.get("dcil.names", "{}"))
    except ValidationError:
        raise InputError(f"the names of the weights of {place} are damaged") from None


def in_runtime(model: Any) -> Callable[[Inputs], list[Tensor]]:
    """A function that runs a ModelProto in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of many types
        raise InputError(f"ONNX Runtime cannot run the network: {fact_of(error)}") from None
    return lambda given: run_session(session, given)


def run_session(session: Any, given: Inputs) -> list[Tensor]:
    """The outputs for the tensors of a call."""
    names = [one.name for one in session.get_inputs()]
    arrays = [tensor.contiguous().numpy() for tensor in flat(given)]
    if len(names) != len(arrays):
        raise InputError("the exported network takes other inputs than the model")
    return [
        torch.from_numpy(np.asarray(out)) for out in session.run(None, dict(zip(names, arrays)))
    ]
