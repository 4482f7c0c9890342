"""The archive of torch.export, a .pt2 file, written and read as plain data.

In:   an ExportedProgram and the texts that go with it; or such a file.
Out:  the file; its tensors, its texts, and the calls of its graph.
Not:  reading builds no program: torch.export.load evaluates expressions of the file.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from torch import Tensor
from torch.export import ExportedProgram

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.files import write_atomically

CONFIG = "data/weights/model_weights_config.json"
GRAPH, DIGEST = "models/model.json", "dcil.graph"
MOST_TEXT = 1 << 28  # bytes of a JSON file in the archive
MOST_NUMBERS, MOST_DIMS = 1 << 40, 8  # of one side of a tensor; sides
MOST_PER_BYTE = 16  # bytes of tensors for each byte of a file: tied weights share theirs
DTYPES = {  # as the archive numbers them
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


class ArchiveInt(BaseModel):
    """A size of the archive; one that is an expression is refused."""

    as_int: NonNegativeInt


class ArchiveMeta(BaseModel):
    """A tensor's type and place in its file."""

    dtype: int
    sizes: list[ArchiveInt]
    strides: list[ArchiveInt]
    storage_offset: ArchiveInt


class ArchiveWeight(BaseModel):
    """One entry of the archive's list of weights."""

    path_name: str
    use_pickle: bool
    tensor_meta: ArchiveMeta


class ArchiveWeights(BaseModel):
    """The archive's list of weights."""

    config: dict[str, ArchiveWeight]


class ArchiveArgument(BaseModel):
    """One argument of a call; `arg` has one entry, such as {"as_tensor": {"name": "x"}}."""

    name: str = ""
    arg: dict[str, Any]

    @property
    def tensor(self) -> str:
        """The name of the tensor that it is, else empty."""
        found = self.arg.get("as_tensor")
        return str(found.get("name", "")) if isinstance(found, dict) else ""

    @property
    def tensors(self) -> list[str]:
        """The names of the tensors that it holds: its own, or those of its list."""
        listed = self.arg.get("as_tensors")
        entries = listed if isinstance(listed, list) else []
        return [self.tensor, *(str(e.get("name", "")) for e in entries if isinstance(e, dict))]

    @property
    def number(self) -> float | int | None:
        found = self.arg.get("as_float", self.arg.get("as_int"))
        return found if isinstance(found, (int, float)) else None


class ArchiveCall(BaseModel):
    """A node of the graph."""

    target: str
    inputs: list[ArchiveArgument]


class ArchiveNodes(BaseModel):
    """The nodes of the graph."""

    nodes: list[ArchiveCall]


class ArchiveSignature(BaseModel):
    """What the inputs of the graph are: each has one entry, such as {"buffer": {...}}."""

    input_specs: list[dict[str, dict[str, Any]]]


class ArchiveGraph(BaseModel):
    """The graph and its signature."""

    graph: ArchiveNodes
    signature: ArchiveSignature

    def stored(self) -> dict[str, str]:
        """The graph's name of each stored tensor -> its name in the list of weights."""
        found = {}
        for spec in self.signature.input_specs:
            for kind, key in (("parameter", "parameter_name"), ("buffer", "buffer_name")):
                inner = spec.get(kind)
                if inner is not None:
                    found[str((inner.get("arg") or {}).get("name"))] = str(inner.get(key))
        return found


class ArchiveProgram(BaseModel):
    """The part of the program's JSON that is read."""

    graph_module: ArchiveGraph


@dataclass(frozen=True)
class Archive:
    """A .pt2 file.

    texts   the extra files of those names that were asked for and are there
    digest  of the graph
    """

    tensors: dict[str, Tensor]
    texts: dict[str, str]
    graph: ArchiveGraph | None
    digest: str

    def graph_faults(self) -> list[str]:
        """A fault where the graph is not the one that was saved."""
        if self.texts.get(DIGEST, self.digest) == self.digest:
            return []
        return ["the graph is not the one that was exported: its digest differs"]


def save_program(program: ExportedProgram, place: Path, texts: Mapping[str, str]) -> None:
    """torch.export.save, atomically, with a digest of the graph."""
    draft = io.BytesIO()
    torch.export.save(program, draft)
    with zipfile.ZipFile(draft) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        sha256 = hashlib.sha256(archive.read(entries[GRAPH])).hexdigest()

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # torch asks a path to end in .pt2
            torch.export.save(program, cast(Any, opened), extra_files={DIGEST: sha256, **texts})

    write_atomically(place, write)


def read_archive(place: Path, texts: tuple[str, ...] = (), graph: bool = False) -> Archive:
    """The tensors, these texts, and the graph if it is asked for. InputError for damage."""
    try:
        with zipfile.ZipFile(place) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise InputError(f"{place} holds two files of one name")
            tensors = _tensors(archive, entries, place)
            if GRAPH not in entries:
                raise InputError(f"{place} is not a network of torch.export: it lacks {GRAPH}")
            text = _bytes(archive, entries[GRAPH], place, MOST_TEXT)
            found = {
                name: _bytes(archive, entries[f"extra/{name}"], place, MOST_TEXT).decode()
                for name in (DIGEST, *texts)
                if f"extra/{name}" in entries
            }
            parsed = _graph(text, place) if graph else None
            return Archive(tensors, found, parsed, hashlib.sha256(text).hexdigest())
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"{place} is damaged: {error}") from None


Entries = Mapping[str, zipfile.ZipInfo]


def _tensors(archive: zipfile.ZipFile, entries: Entries, place: Path) -> dict[str, Tensor]:
    if CONFIG not in entries:
        raise InputError(f"{place} is not a network of torch.export: it lacks {CONFIG}")
    try:
        text = _bytes(archive, entries[CONFIG], place, MOST_TEXT)
        config = ArchiveWeights.model_validate_json(text).config
    except ValidationError as error:
        raise InputError(
            f"the list of weights of {place} is damaged: {first_fault(error)}"
        ) from None
    stored: dict[str, bytearray] = {}
    tensors: dict[str, Tensor] = {}
    left = MOST_PER_BYTE * place.stat().st_size
    for name, weight in config.items():
        path = f"data/weights/{weight.path_name}"
        if weight.use_pickle or path not in entries:
            why = "is pickled" if weight.use_pickle else "is missing"
            raise InputError(f"the weight `{name}` of {place} {why}")
        if path not in stored:
            stored[path] = bytearray(_bytes(archive, entries[path], place))
            left -= len(stored[path])
        tensors[name] = _tensor(name, weight.tensor_meta, stored[path], place)
        left -= tensors[name].nbytes
        if left < 0:
            raise InputError(f"the weights of {place} are larger than the file")
    return tensors


def _graph(text: bytes, place: Path) -> ArchiveGraph:
    try:
        return ArchiveProgram.model_validate_json(text).graph_module
    except ValidationError as error:
        raise InputError(f"the graph of {place} is damaged: {first_fault(error)}") from None


def _bytes(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path, most: int | None = None
) -> bytes:
    """An entry that is not compressed, so that it is never larger than the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise InputError(f"{info.filename} in {place} is compressed or encrypted")
    if info.file_size > (place.stat().st_size if most is None else most):
        raise InputError(f"{info.filename} in {place} is too large")
    with archive.open(info) as opened:
        return cast(BinaryIO, opened).read()


def _tensor(name: str, meta: ArchiveMeta, data: bytearray, place: Path) -> Tensor:
    dtype = DTYPES.get(meta.dtype)
    if dtype is None:
        raise InputError(f"the weight `{name}` of {place} has a type of number {meta.dtype}")
    sizes = [size.as_int for size in meta.sizes]
    strides = [stride.as_int for stride in meta.strides]
    if len(sizes) != len(strides):
        raise InputError(f"the weight `{name}` of {place} has other strides than sizes")
    if max([*sizes, *strides, 0]) > MOST_NUMBERS or len(sizes) > MOST_DIMS:
        raise InputError(f"the weight `{name}` of {place} is larger than its file")
    if 0 in sizes:
        return torch.zeros(0, dtype=dtype).reshape(sizes)
    last = meta.storage_offset.as_int
    count = 1
    for size, stride in zip(sizes, strides, strict=True):
        last, count = last + (size - 1) * stride, count * size
    have = len(data) // dtype.itemsize
    if last >= have or count > have:
        raise InputError(f"the weight `{name}` of {place} is larger than its file")
    flat = torch.frombuffer(data, dtype=torch.uint8)[: have * dtype.itemsize].view(dtype)
    return flat.as_strided(sizes, strides, meta.storage_offset.as_int).contiguous()
