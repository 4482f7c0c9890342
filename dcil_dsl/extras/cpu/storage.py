"""The tensors of an exported network: weights with zeros as a bit mask and the kept values.

In:   tensors by name; or weights.safetensors, read back.
Out:  the file; Stored, a tensor that is dense or compressed.
Not:  the layouts of the kernels are made when a folder is loaded (pack.py), never stored.

A compressed tensor `w` is three entries of the file: `w:mask` (one bit for each number, the first
number in the lowest bit), `w:values` (the numbers whose bit is set, in order) and `w:shape`. There
is no index in the file that could point anywhere: a mask fits its values or it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Origin
from dcil_dsl.exporting.files import write_safetensors
from dcil_dsl.model.digest import digest

WEIGHTS = "weights.safetensors"
MASK, VALUES, SHAPE = ":mask", ":values", ":shape"
MOST_NUMBERS = 2**31 - 1  # of one tensor; offsets in the kernels have 32 bits
FLOATING = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file.

    values  the whole tensor; of a compressed one the kept numbers
    mask    one byte for 8 numbers; None: dense
    """

    shape: tuple[int, ...]
    values: Tensor
    mask: np.ndarray | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def num_nonzero(self) -> int:
        return int((self.values != 0).sum())

    @property
    def num_bytes(self) -> int:
        mask = 0 if self.mask is None else self.mask.nbytes
        return self.values.numel() * self.values.element_size() + mask

    def kept(self) -> np.ndarray:
        """True for every stored number, in the order of the dense tensor."""
        if self.mask is None:
            return np.asarray((self.values != 0).reshape(-1).numpy())
        return np.unpackbits(self.mask, count=self.size, bitorder="little").view(np.bool_)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor."""
        values = self.values if dtype is None else self.values.to(dtype)
        if self.mask is None:
            return values
        full = torch.zeros(self.size, dtype=values.dtype)
        full[torch.from_numpy(self.kept())] = values
        return full.reshape(self.shape)


def compress(tensor: Tensor, dtype: torch.dtype | None = None) -> StoredTensor:
    """The smaller of the dense and the compressed form. `dtype`: the type of the stored values.

    Negative zeros count as zeros.
    """
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return StoredTensor(tuple(tensor.shape), tensor)
    kept = (tensor != 0).reshape(-1)
    values = tensor.reshape(-1)[kept].to(dtype or tensor.dtype)
    mask = np.packbits(kept.numpy(), bitorder="little")
    small = StoredTensor(tuple(tensor.shape), values.contiguous(), mask)
    whole = StoredTensor(tuple(tensor.shape), tensor.to(dtype or tensor.dtype))
    return small if small.num_bytes < whole.num_bytes else whole


def write_tensors(
    file: Path, stored: Mapping[str, StoredTensor], origin: Origin | None = None
) -> None:
    """Write the file as a whole, or nothing; `origin` goes into its header."""
    tensors: dict[str, Tensor] = {}
    for name, entry in stored.items():
        if entry.mask is None:
            tensors[name] = entry.values.clone()  # the format takes no shared memory
            continue
        tensors[name + MASK] = torch.from_numpy(entry.mask.copy())
        tensors[name + VALUES] = entry.values.clone()
        tensors[name + SHAPE] = torch.tensor(entry.shape, dtype=torch.int64)
    write_safetensors(tensors, file, origin, "" if origin is None else origin.digest)


def read_tensors(file: Path) -> dict[str, StoredTensor]:
    """Read and check the file. InputError where it is missing or damaged."""
    if file.exists() and not file.is_file():  # such as a pipe, which would be waited for
        raise InputError(f"{file} is not a file")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except FileNotFoundError:
        raise InputError(f"there is no {file.name} in {file.parent}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    except Exception as error:  # the format's own errors, of many types
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from None
    return parse_tensors(tensors, str(file))


def parse_tensors(tensors: Mapping[str, Tensor], place: str) -> dict[str, StoredTensor]:
    """Stored tensors from the entries of a file; every mask fits its shape and its values."""
    found: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        if not key.isprintable():
            raise InputError(f"{place} has a tensor whose name cannot be printed: {key[:100]!a}")
        if key.endswith(MASK):
            name = key.removesuffix(MASK)
            found[name] = _compressed(name, tensor, tensors, place)
        elif not key.endswith((VALUES, SHAPE)):
            found[key] = StoredTensor(tuple(tensor.shape), tensor.contiguous())
    for key in tensors:
        for suffix in (VALUES, SHAPE):
            if key.endswith(suffix) and key.removesuffix(suffix) not in found:
                raise InputError(f"{place}: `{key}` has no mask")
    for name, stored in found.items():
        if stored.size > MOST_NUMBERS:
            raise InputError(f"{place}: `{name}` holds {stored.size:,} numbers: too many")
    return found


def _compressed(name: str, mask: Tensor, tensors: Mapping[str, Tensor], place: str) -> StoredTensor:
    values, shape = tensors.get(name + VALUES), tensors.get(name + SHAPE)
    if values is None or shape is None:
        missing = VALUES if values is None else SHAPE
        raise InputError(f"{place}: `{name}{missing}` is missing")
    if mask.dtype != torch.uint8 or mask.dim() != 1:
        raise InputError(f"{place}: the mask of `{name}` is not a list of bytes")
    if shape.dtype != torch.int64 or shape.dim() != 1 or shape.numel() > 8:
        raise InputError(f"{place}: the shape of `{name}` is not a list of sizes")
    sizes = [int(size) for size in shape]
    if any(size < 0 for size in sizes) or prod(sizes) > MOST_NUMBERS:
        raise InputError(f"{place}: `{name}` has the shape {sizes}")
    if values.dim() != 1 or not values.is_floating_point():
        raise InputError(f"{place}: the values of `{name}` are not a list of numbers")
    bits = mask.numpy()
    if len(bits) != (prod(sizes) + 7) // 8:
        raise InputError(
            f"{place}: the mask of `{name}` has {len(bits):,} bytes, its shape {sizes} needs "
            f"{(prod(sizes) + 7) // 8:,}"
        )
    ones = int(np.unpackbits(bits, bitorder="little").sum())
    inside = int(np.unpackbits(bits, count=prod(sizes), bitorder="little").sum())
    if ones != values.numel() or inside != ones:
        raise InputError(
            f"{place}: the mask of `{name}` keeps {inside:,} numbers, and {values.numel():,} "
            "are stored"
        )
    return StoredTensor(tuple(sizes), values.contiguous(), bits)


def digest_of(stored: Mapping[str, StoredTensor]) -> str:
    """A sha256 of names, shapes and numbers."""
    entries: dict[str, Tensor] = {}
    for name, entry in stored.items():
        entries[name] = entry.values
        if entry.mask is not None:
            entries[name + MASK] = torch.from_numpy(entry.mask)
            entries[name + SHAPE] = torch.tensor(entry.shape, dtype=torch.int64)
    return digest(entries)
