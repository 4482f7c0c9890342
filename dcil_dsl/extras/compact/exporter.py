"""The format `compact`: a folder with the network without its dead parts.

In:   a Deployed network; or such a folder.
Out:  a folder with small.safetensors, shapes.json, report.json; its tensors in the original's
      shapes.
Not:  nothing is trained, and the given network is not changed.
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.compact.compaction import Compacted, compact
from dcil_dsl.extras.compact.files import SHAPES, WEIGHTS, expand_tensors, read_shapes, write_shapes
from dcil_dsl.extras.compact.load import try_inputs
from dcil_dsl.extras.compact.report import Measured, measure, report_of, show_compacted
from dcil_dsl.jobs.data import pick_device
from dcil_dsl.jobs.example import example_of

BATCH = 32  # images in the batch that is timed


class Compact:
    """The folder of a smaller network."""

    def write(self, deployed: Deployed, place: Path) -> str:
        return show_compacted(*write_compact(deployed, place))

    def recognises(self, place: Path) -> bool:
        return (place / SHAPES).is_file()

    def read(self, place: Path) -> Artefact:
        """Biases and norms hold constants of dead parts: the numbers differ from the run's."""
        shapes, small = read_shapes(place)
        _, origin = read_safetensors(place / WEIGHTS)
        return Artefact(place, expand_tensors(shapes, small), origin, exact=False)

    def verify(self, artefact: Artefact) -> list[str]:
        return []  # read_shapes compares the digest; whether it fits its model, load_compact does


def write_compact(deployed: Deployed, folder: Path) -> tuple[Compacted, Measured]:
    """Compact the network, run both, and write the folder.

    Raises InputError; nothing is written where the two networks differ.
    """
    network = deployed.network
    example = example_of(deployed, batch=2)
    try_inputs(network, example, f"the plan or the header of {deployed.source}")
    result = compact(network, example)
    device = pick_device("auto")
    inputs = example_of(deployed, BATCH).to(device)
    network.eval()
    measured = measure(network.to(device), result.model.to(device), inputs)
    result.model.cpu()
    report = report_of(result, measured)
    write_shapes(folder, result.shapes, result.tensors, report, deployed.origin)
    return result, measured
