"""The formats of one file: safetensors, with a header, and PyTorch's state dict.

In:   a Deployed network; or a file of ours or of anybody else.
Out:  sparse.safetensors or a .pth of tensors, written atomically; Artefact when read back.
Not:  no pickled objects: safetensors, or torch.load(weights_only=True).

The header of a safetensors file holds JSON under the key "dcil": its Origin, with a digest of its
tensors. A .pth is a bare state dict, so that it loads anywhere in one line; it promises nothing.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed, Origin
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.training.files import cannot_write, write_atomically


class Safetensors:
    """One .safetensors file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        """Equal networks give equal files, byte for byte. Without an origin there is no header."""
        tensors = deployed.tensors()
        write_safetensors(tensors, place, deployed.origin, digest(tensors))
        return ""

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".safetensors"

    def read(self, place: Path) -> Artefact:
        return Artefact(place, *read_safetensors(place))

    def verify(self, artefact: Artefact) -> list[str]:
        return []


class Pth:
    """One .pth file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        tensors = deployed.tensors()

        def write(draft: Path) -> None:
            try:
                torch.save(tensors, draft)
            except RuntimeError as error:
                raise cannot_write(place, error) from None

        write_atomically(place, write)
        return ""

    def recognises(self, place: Path) -> bool:
        return place.suffix in (".pth", ".pt")

    def read(self, place: Path) -> Artefact:
        return Artefact(place, _read_pth(place), None)

    def verify(self, artefact: Artefact) -> list[str]:
        return []


def write_safetensors(
    tensors: dict[str, Tensor], file: Path, origin: Origin | None, origin_digest: str
) -> None:
    """Write tensors, with `origin` and its digest in the header."""
    header = {"format": "pt"}
    if origin is not None:
        header["dcil"] = origin.model_copy(update={"digest": origin_digest}).model_dump_json()

    def write(draft: Path) -> None:
        try:
            save_file(tensors, draft, header)
            order_metadata(draft)
        except (SafetensorError, RuntimeError) as error:
            raise cannot_write(file, error) from None

    write_atomically(file, write)


def order_metadata(file: Path) -> None:
    """Sort the keys of the header's metadata, which safetensors writes in a random order.

    Two runs with the same result then have the same file, byte for byte.
    """
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same content, written as compactly as safetensors does"
        opened.seek(8)
        opened.write(text.ljust(size))  # spaces at the end are part of the format


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], Origin | None]:
    """The tensors, and the origin where the header has one. InputError for a damaged file."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    return tensors, None if "dcil" not in header else parse_origin(header["dcil"], file)


def parse_origin(text: str, file: Path) -> Origin:
    """The header that a file holds as JSON. InputError where this version cannot read it."""
    try:
        return Origin.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"the header of {file} is not one that this version reads",
            help=f"the first fault: {first_fault(error)}",
        ) from None


def _read_pth(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} is damaged, or holds more than tensors, which could run code when loaded"
        ) from None
    except Exception as error:  # the format's own errors, of many types
        fact = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read: {type(error).__name__}: {fact}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in loaded.items())
    ):
        raise InputError(f"{file} is not a state dict of tensors")
    return loaded
