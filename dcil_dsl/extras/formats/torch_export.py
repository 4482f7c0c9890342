"""The format `torch-export`: a .pt2 file, the traced network with its weights.

In:   a Deployed network; or such a file.
Out:  the file of torch.export.save; its tensors, read from the archive alone.
Not:  reading builds no program: torch.export.load evaluates expressions of the file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import parse_origin
from dcil_dsl.extras.formats.graph import (
    has_free_batch,
    largest_difference,
    refuse_uncounted,
    tensors_of,
    trace_for_export,
)
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.checkpoint import digest
from dcil_dsl.training.files import write_atomically

HEADER = "dcil.json"
CONFIG = "data/weights/model_weights_config.json"
MOST_TEXT = 1 << 26  # bytes of a JSON file in the archive
MOST_NUMBERS, MOST_DIMS = 1 << 40, 8  # of one side of a tensor; sides
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


class TorchExport:
    """A .pt2 file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        program, inputs = trace_for_export(deployed)
        refuse_uncounted(deployed, program.state_dict)
        module, is_free = program.module(), has_free_batch(program)
        difference = largest_difference(
            deployed,
            inputs,
            lambda given: tensors_of(module(*given.args, **given.kwargs)),
            is_free,
        )
        extra = {}
        if deployed.origin is not None:
            tensors = {name: t.detach().contiguous() for name, t in program.state_dict.items()}
            named = deployed.origin.model_copy(update={"digest": digest(tensors)})
            extra[HEADER] = named.model_dump_json()

        def write(draft: Path) -> None:
            with draft.open("wb") as opened:  # torch asks a path to end in .pt2
                torch.export.save(program, cast(Any, opened), extra_files=extra)

        write_atomically(place, write)
        batch = "any" if is_free else f"{inputs.batch_size()} alone"
        return f"largest difference {difference:.1e}; batch size: {batch}"

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".pt2"

    def read(self, place: Path) -> Artefact:
        try:
            with zipfile.ZipFile(place) as archive:
                tensors, header = _read_archive(archive, place)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
            raise InputError(f"{place} is damaged: {error}") from None
        return Artefact(place, tensors, None if header is None else parse_origin(header, place))

    def verify(self, artefact: Artefact) -> list[str]:
        return []


def _read_archive(archive: zipfile.ZipFile, place: Path) -> tuple[dict[str, Tensor], str | None]:
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise InputError(f"{place} holds two files of one name")
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
    tensors = {}
    for name, weight in config.items():
        path = f"data/weights/{weight.path_name}"
        if weight.use_pickle or path not in entries:
            why = "is pickled" if weight.use_pickle else "is missing"
            raise InputError(f"the weight `{name}` of {place} {why}")
        if path not in stored:
            stored[path] = bytearray(_bytes(archive, entries[path], place))
        tensors[name] = _tensor(name, weight.tensor_meta, stored[path], place)
    header = entries.get(f"extra/{HEADER}")
    if header is None:
        return tensors, None
    return tensors, _bytes(archive, header, place, MOST_TEXT).decode("utf-8", "replace")


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
