"""A folder with a network that is lowered to a device, and the program that it was lowered from.

In:   a program of torch.export, and the file that a device's tools made of it.
Out:  program.pt2, network.pte; the weights of the program under the original's names.
Not:  no lowering (executorch_file.py, ethos_u.py).

A lowered network is in a device's own form, in which no zeros can be counted. `dcil verify` counts
those of the program, whose file holds a sha256 of the lowered one. An int8 weight of the program is
read as (code - zero point) * scale, from what its graph does with the codes.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.export import ExportedProgram

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed, Origin
from dcil_dsl.extras.formats.archive import (
    Archive,
    ArchiveCall,
    read_archive,
    save_program,
)
from dcil_dsl.extras.formats.graph import refuse_broadcast, refuse_uncounted, write_bytes
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import first_fault

PROGRAM, LOWERED = "program.pt2", "network.pte"
HEADER = "dcil.lowered.json"
DEQUANTIZE = "torch.ops.quantized_decomposed.dequantize_per_"


class LoweredHeader(BaseModel):
    """What program.pt2 says of itself.

    weights  the original's name of each weight -> its name in the program
    sha256   of network.pte
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin | None
    weights: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class LoweredFile:
    """What a device's tools made of a program."""

    program: ExportedProgram
    weights: dict[str, str]
    data: bytes


class LoweredFolder:
    """A folder of both files."""

    def recognises(self, place: Path) -> bool:
        return (place / PROGRAM).is_file()

    def read(self, place: Path) -> Artefact:
        archive, header = _open(place / PROGRAM)
        tensors = named_weights(archive, header.weights, place / PROGRAM)
        return Artefact(place, tensors, header.origin, exact=False, complete=False)

    def verify(self, artefact: Artefact) -> list[str]:
        file = artefact.file / LOWERED
        if not file.is_file():
            raise InputError(f"there is no {LOWERED} in {artefact.file}")
        archive, header = _open(artefact.file / PROGRAM)
        faults = archive.graph_faults()
        if hashlib.sha256(file.read_bytes()).hexdigest() != header.sha256:
            faults.append(f"{LOWERED} was not lowered from {PROGRAM}: its digest differs")
        return faults


def save_lowered(made: LoweredFile, deployed: Deployed, place: Path) -> None:
    """Write the lowered network, then the program that vouches for it."""
    header = LoweredHeader(
        origin=None, weights=made.weights, sha256=hashlib.sha256(made.data).hexdigest()
    )
    if deployed.origin is not None:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / PROGRAM
            save_program(made.program, draft, {})
            read = named_weights(read_archive(draft, graph=True), made.weights, draft)
        refuse_uncounted(deployed, read)
        origin = deployed.origin.model_copy(update={"digest": digest(read)})
        header = header.model_copy(update={"origin": origin})
    write_bytes(place / LOWERED, made.data)
    save_program(made.program, place / PROGRAM, {HEADER: header.model_dump_json()})


def _open(file: Path) -> tuple[Archive, LoweredHeader]:
    archive = read_archive(file, (HEADER,), graph=True)
    if HEADER not in archive.texts:
        raise InputError(f"{file} does not say which network was lowered from it")
    try:
        return archive, LoweredHeader.model_validate_json(archive.texts[HEADER])
    except ValidationError as error:
        raise InputError(f"the header of {file} is damaged: {first_fault(error)}") from None


def named_weights(archive: Archive, weights: dict[str, str], file: Path) -> dict[str, Tensor]:
    """Each weight that a call of the graph reads, as the numbers that the call stands for."""
    assert archive.graph is not None
    stored = archive.graph.stored()
    readers: dict[str, list[ArchiveCall]] = {}
    for call in archive.graph.graph.nodes:
        for argument in call.inputs:
            for held in argument.tensors:
                if held in stored:
                    readers.setdefault(stored[held], []).append(call)
    found = {}
    for name, own in weights.items():
        if own not in archive.tensors or own not in readers:
            continue  # a promised weight that is missing is a fault
        tensor = archive.tensors[own]
        if tensor.is_floating_point():
            found[name] = tensor
            continue
        meaning, *others = (_meaning(call, own, archive, stored, file) for call in readers[own])
        if not all(torch.equal(other, meaning) for other in others):
            raise InputError(f"{file}: two calls give `{name}` different scales")
        found[name] = meaning
    return found


def _meaning(
    call: ArchiveCall, name: str, archive: Archive, stored: dict[str, str], file: Path
) -> Tensor:
    """(code - zero point) * scale of a call that dequantizes."""
    codes, kind = archive.tensors[name], call.target.removeprefix(DEQUANTIZE)
    if kind == call.target or len(call.inputs) < 4 or stored.get(call.inputs[0].tensor) != name:
        raise InputError(f"{file}: `{call.target[:80]}` reads integer weights")
    parts = []
    for argument in call.inputs[1:3]:
        number = argument.number
        part = (
            archive.tensors.get(stored.get(argument.tensor, ""))
            if number is None
            else torch.tensor(number)
        )
        if part is None or part.dim() > 1:
            raise InputError(f"{file}: the scales of an integer weight are missing")
        parts.append(part.double())
    shape = [1] * codes.dim()
    if kind.startswith("channel"):
        axis = call.inputs[3].number
        if not isinstance(axis, int) or not 0 <= axis < codes.dim():
            raise InputError(f"{file}: scales do not fit an integer weight")
        shape[axis] = -1
    scale, zero = (part.reshape(shape) if part.dim() else part for part in parts)
    refuse_broadcast(tuple(codes.shape), tuple(scale.shape), tuple(zero.shape))
    return ((codes.double() - zero) * scale).float()
