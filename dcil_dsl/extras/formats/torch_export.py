"""The format `torch-export`: a .pt2 file, the traced network with its weights.

In:   a Deployed network; or such a file.
Out:  the file of torch.export.save; its tensors, read from the archive alone.
Not:  the archive itself (archive.py).
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import parse_origin
from dcil_dsl.extras.formats.archive import read_archive, save_program
from dcil_dsl.extras.formats.graph import (
    compare,
    refuse_uncounted,
    tensors_of,
    trace_for_export,
)
from dcil_dsl.model.digest import digest

HEADER = "dcil.json"


class TorchExport:
    """A .pt2 file."""

    def write(self, deployed: Deployed, place: Path) -> str:
        traced = trace_for_export(deployed)
        program = traced.program
        refuse_uncounted(deployed, program.state_dict)
        module = program.module()
        found = compare(
            deployed,
            traced.inputs,
            lambda given: tensors_of(module(*given.args, **given.kwargs)),
            traced.is_free,
        )
        texts = {}
        if deployed.origin is not None:
            tensors = {name: t.detach().contiguous() for name, t in program.state_dict.items()}
            named = deployed.origin.model_copy(update={"digest": digest(tensors)})
            texts[HEADER] = named.model_dump_json()
        save_program(program, place, texts)
        return found.report()

    def recognises(self, place: Path) -> bool:
        return place.suffix == ".pt2"

    def read(self, place: Path) -> Artefact:
        found = read_archive(place, (HEADER,))
        header = found.texts.get(HEADER)
        return Artefact(
            place, found.tensors, None if header is None else parse_origin(header, place)
        )

    def verify(self, artefact: Artefact) -> list[str]:
        return read_archive(artefact.file).graph_faults()
