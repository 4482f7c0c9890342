"""The format `cpu`: a folder for the kernels that skip zeros, and its tensors as they were named.

In:   a Deployed network; or such a folder.
Out:  the folder and the table of its layers; the tensors under the original's names.
Not:  the program and the tensors are export.py's.
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.cpu.export import original_tensors, verify, write
from dcil_dsl.extras.cpu.network import read_network
from dcil_dsl.extras.cpu.program import PROGRAM
from dcil_dsl.extras.cpu.storage import WEIGHTS
from dcil_dsl.jobs.example import example_of


class Cpu:
    """The folder of a network for the kernels on a CPU."""

    def write(self, deployed: Deployed, place: Path) -> str:
        write(deployed.network, example_of(deployed, batch=2), place, origin=deployed.origin)
        artefact, report = self.read(place), verify(place)
        for promise in () if artefact.origin is None else artefact.origin.promises:
            for name in promise.parameters:
                if name not in artefact.tensors:
                    report += (
                        f"`{name}` is not a tensor of the folder: the network computes with a "
                        "constant made from it, or not at all. `dcil verify` cannot count its "
                        "zeros.\n"
                    )
        return report

    def recognises(self, place: Path) -> bool:
        return (place / PROGRAM).is_file()

    def read(self, place: Path) -> Artefact:
        """Batch norms are folded into the weights: the numbers differ from the run's."""
        _, stored = read_network(place)
        _, origin = read_safetensors(place / WEIGHTS)
        return Artefact(place, original_tensors(stored), origin, exact=False, complete=False)

    def verify(self, artefact: Artefact) -> list[str]:
        return []  # read_network checks the folder as a whole
