"""The format `packed`: the smallest file; a bit mask and the kept values, each compressed.

In:   a Deployed network; or such a file.
Out:  one file in the layout of safetensors; its tensors, bit for bit or rounded to 16 bits.
Not:  no engine reads it: the network computes with dense tensors again.

The file holds two byte tensors, `masks` and `values`, each one zstd frame, and in its metadata the
key "packed": a JSON list of [name, stored type, shape, number of kept values, original type]. The
number is null for a tensor that is stored whole. Masks have one bit a number, the first number in
the lowest bit, and fill whole bytes for each tensor. The kept values of a tensor follow each other
by byte: first the lowest byte of all of them, then the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import order_metadata, parse_origin
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.files import cannot_write, write_atomically

LEVEL = 19  # of zstd; decompression costs the same at every level
MOST_PER_BYTE = 4096  # bytes of tensors for each byte of a file; more is an attack on the memory
FREE = 1 << 20  # bytes of tensors that every file may have
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PackedTensor(BaseModel):
    """One line of the table. kept: None where the tensor is stored whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    stored: str
    shape: tuple[NonNegativeInt, ...]
    kept: NonNegativeInt | None
    original: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    def line(self) -> list[Any]:
        return [self.name, self.stored, list(self.shape), self.kept, self.original]


class Packed:
    """A file whose tensors have the original types, bit for bit."""

    rounded: torch.dtype | None = None

    def write(self, deployed: Deployed, place: Path) -> str:
        import zstandard

        exact = deployed.tensors()
        stored = {name: self._round(name, tensor) for name, tensor in exact.items()}
        table, masks, values = [], bytearray(), bytearray()
        for name, tensor in stored.items():
            kept, bits, planes = _split(tensor)
            table.append(
                PackedTensor(
                    name=name,
                    stored=_type(tensor),
                    shape=tuple(tensor.shape),
                    kept=kept,
                    original=_type(exact[name]),
                )
            )
            masks += bits
            values += planes
        press = zstandard.ZstdCompressor(level=LEVEL)
        streams = {
            key: torch.frombuffer(bytearray(press.compress(bytes(stream))), dtype=torch.uint8)
            for key, stream in (("masks", masks), ("values", values))
        }
        dense = sum(tensor.nbytes for tensor in exact.values())
        size = sum(stream.nbytes for stream in streams.values())
        if dense > MOST_PER_BYTE * size + FREE:
            raise InputError(
                f"{deployed.source} is almost empty: its tensors have {dense / size:,.0f} times "
                "the size of the file, which readers refuse",
                help="export it to safetensors",
            )
        header = {"format": "pt", "packed": json.dumps([entry.line() for entry in table])}
        if deployed.origin is not None:
            read = {name: stored[name].to(exact[name].dtype) for name in exact}
            named = deployed.origin.model_copy(update={"digest": digest(read)})
            header["dcil"] = named.model_dump_json()

        def write(draft: Path) -> None:
            try:
                save_file(streams, draft, header)
                order_metadata(draft)
            except (SafetensorError, RuntimeError) as error:
                raise cannot_write(place, error) from None

        write_atomically(place, write)
        return self._report(exact, stored, dense, place)

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".packed"

    def read(self, place: Path) -> Artefact:
        table, masks, values, header = _open(place)
        tensors = _join(table, masks, values, place)
        exact = all(entry.stored == entry.original for entry in table)
        origin = None if "dcil" not in header else parse_origin(header["dcil"], place)
        return Artefact(place, tensors, origin, exact=exact)

    def verify(self, artefact: Artefact) -> list[str]:
        return []  # the digest in the header is that of the tensors as they are read

    def _round(self, name: str, tensor: Tensor) -> Tensor:
        """Weights in the stored type. Vectors, as those of norms, keep their own: their range
        matters and their size does not."""
        wide = tensor.dtype in (torch.float32, torch.float64)
        if self.rounded is None or not wide or tensor.dim() < 2:
            return tensor
        found = tensor.to(self.rounded)
        if bool((found.isinf() & tensor.isfinite()).any()):
            raise InputError(
                f"`{name}` holds numbers up to {float(tensor.abs().max()):.3g}, which "
                f"{_type(found)} cannot",
                help="export it to packed or packed-bf16",
            )
        return found

    def _report(
        self, exact: Mapping[str, Tensor], stored: Mapping[str, Tensor], dense: int, place: Path
    ) -> str:
        size = place.stat().st_size
        text = f"{size:,} bytes; the dense tensors have {dense:,}, {dense / size:.1f} times as many"
        lost = sum(int(((stored[name] == 0) & (exact[name] != 0)).sum()) for name in exact)
        if lost:
            text += f"\n{count(lost, 'number')} so small that {_name(self.rounded)} has 0 for them"
        return text


class PackedHalf(Packed):
    """Weights rounded to float16."""

    rounded = torch.float16


class PackedBrain(Packed):
    """Weights rounded to bfloat16."""

    rounded = torch.bfloat16


def _split(tensor: Tensor) -> tuple[int | None, bytes, bytes]:
    """The number of kept values, the mask and the values of a tensor, whichever form is smaller.

    A negative zero is kept: no bit of the tensor changes.
    """
    if tensor.is_complex() or tensor.element_size() not in WORDS:
        raise InputError(f"a tensor of type {_type(tensor)} cannot be packed")
    words = tensor.reshape(-1).view(WORDS[tensor.element_size()]).numpy()
    kept = words != 0
    bits, values = np.packbits(kept, bitorder="little"), words[kept]
    if bits.nbytes + values.nbytes >= words.nbytes:
        return None, b"", _planes(words)
    return len(values), bits.tobytes(), _planes(values)


def _planes(words: np.ndarray[Any, Any]) -> bytes:
    """The lowest byte of every word, then the next one, ..."""
    width = words.dtype.itemsize
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, width).T).tobytes()


def _open(place: Path) -> tuple[list[PackedTensor], bytes, bytes, dict[str, str]]:
    """The table, both streams and the metadata; every size is checked before it is allocated."""
    try:
        with safe_open(place, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            if set(opened.keys()) != {"masks", "values"} or "packed" not in header:
                raise InputError(f"{place} is not a packed network")
            streams = {key: opened.get_tensor(key) for key in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{place} is damaged: {error}") from None
    table = _table(header["packed"], place)
    dense = sum(entry.size * _dtype(entry.original, place).itemsize for entry in table)
    if dense > MOST_PER_BYTE * place.stat().st_size + FREE:
        raise InputError(f"{place} claims tensors of {dense:,} bytes: too many for its size")
    for entry in table:
        if entry.kept is not None and entry.kept > entry.size:
            raise InputError(f"{place} keeps {entry.kept:,} of {entry.size:,} of `{entry.name}`")
    num_mask = sum((entry.size + 7) // 8 for entry in table if entry.kept is not None)
    num_values = sum(
        (entry.size if entry.kept is None else entry.kept) * _dtype(entry.stored, place).itemsize
        for entry in table
    )
    masks = _decompress(streams["masks"], num_mask, place)
    return table, masks, _decompress(streams["values"], num_values, place), header


def _table(text: str, place: Path) -> list[PackedTensor]:
    keys = tuple(PackedTensor.model_fields)
    try:
        lines = TypeAdapter(list[list[Any]]).validate_json(text)
        table = [PackedTensor.model_validate(dict(zip(keys, line, strict=True))) for line in lines]
    except ValidationError as error:
        raise InputError(f"the table of {place} is damaged: {first_fault(error)}") from None
    except ValueError as error:
        raise InputError(f"the table of {place} is damaged: {error}") from None
    names = [entry.name for entry in table]
    if len(set(names)) < len(names):
        raise InputError(f"the table of {place} names a tensor twice")
    return table


def _decompress(stream: Tensor, size: int, place: Path) -> bytes:
    import zstandard

    packed = stream.numpy().tobytes()
    try:
        claimed = zstandard.frame_content_size(packed)
        if claimed != size:
            raise InputError(f"{place} is damaged: {claimed:,} bytes where {size:,} are expected")
        return bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=size))
    except zstandard.ZstdError as error:
        raise InputError(f"{place} is damaged: {error}") from None


def _join(table: list[PackedTensor], masks: bytes, values: bytes, place: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    at_mask = at_value = 0
    for entry in table:
        dtype = _dtype(entry.stored, place)
        width, kept = dtype.itemsize, entry.size if entry.kept is None else entry.kept
        planes = np.frombuffer(values, np.uint8, kept * width, at_value).reshape(width, kept)
        words = np.ascontiguousarray(planes.T).reshape(-1).view(f"i{width}" if width > 1 else "u1")
        at_value += kept * width
        if entry.kept is not None:
            size = (entry.size + 7) // 8
            bits = np.frombuffer(masks, np.uint8, size, at_mask)
            mask = np.unpackbits(bits, bitorder="little").view(np.bool_)
            at_mask += size
            if int(mask.sum()) != kept or mask[entry.size :].any():
                raise InputError(f"{place}: the mask of `{entry.name}` does not fit its values")
            full = np.zeros(entry.size, words.dtype)
            full[mask[: entry.size]] = words
            words = full
        found = torch.from_numpy(words.copy())
        if dtype == torch.bool and bool((found > 1).any()):
            raise InputError(
                f"{place}: `{entry.name}` holds values that are neither true nor false"
            )
        typed = found.view(dtype).reshape(entry.shape)
        tensors[entry.name] = typed.to(_dtype(entry.original, place))
    return tensors


def _dtype(name: str, place: Path) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or dtype.itemsize not in WORDS:
        raise InputError(f"{place} names a type of numbers `{name}`")
    return dtype


def _type(tensor: Tensor) -> str:
    return _name(tensor.dtype)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
