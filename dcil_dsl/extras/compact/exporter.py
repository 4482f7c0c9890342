"""The format `compact`: a folder with the network without its dead parts.

In:   a Deployed network; or such a folder.
Out:  a folder with small.safetensors, shapes.json, report.json; its tensors in the original's
      shapes.
Not:  nothing is trained, and the given network is not changed.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from torch import nn

from dcil_dsl.data.datasets import known_record
from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.compact.compaction import Compacted, compact
from dcil_dsl.extras.compact.files import SHAPES, WEIGHTS, expand_tensors, read_shapes, write_shapes
from dcil_dsl.extras.compact.load import MOST_NUMBERS, try_inputs
from dcil_dsl.extras.compact.report import Measured, measure, report_of, show_compacted
from dcil_dsl.jobs.data import pick_device
from dcil_dsl.jobs.prepare import ASSUMED_SIZE
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.augment import crop_sizes
from dcil_dsl.zoo.example import example_inputs, takes_keywords, takes_one_image

BATCH = 32  # images in the batch that is timed


class Compact:
    """A folder."""

    def write(self, deployed: Deployed, place: Path) -> str:
        return show_compacted(*write_compact(deployed, place))

    def recognises(self, place: Path) -> bool:
        return (place / SHAPES).is_file()

    def read(self, place: Path) -> Artefact:
        """Constants of dead parts lie in biases and norms: the numbers are not the run's."""
        shapes, small = read_shapes(place)
        _, origin = read_safetensors(place / WEIGHTS)
        return Artefact(place, expand_tensors(shapes, small), origin, exact=False)

    def verify(self, artefact: Artefact) -> list[str]:
        return []  # read_shapes compares the digest; whether it fits its model, load_compact does


def write_compact(deployed: Deployed, folder: Path) -> tuple[Compacted, Measured]:
    """Compact the network, run both, and write the folder.

    Raises InputError; nothing is written where the two networks differ.
    """
    network, image = deployed.network, _image(deployed)
    example = _inputs(network, image, batch=2)
    try_inputs(network, example, "the plan or the header")
    result = compact(network, example)
    device = pick_device("auto")
    inputs = _inputs(network, image, BATCH).to(device)
    network.eval()
    measured = measure(network.to(device), result.model.to(device), inputs)
    result.model.cpu()
    report = report_of(result, measured)
    write_shapes(folder, result.shapes, result.tensors, report, deployed.origin)
    return result, measured


def _image(deployed: Deployed) -> tuple[int, ...] | None:
    """The shape of one image, as the header has it, else as the run was trained on; None: not
    known."""
    sizes = [*(deployed.origin.sizes if deployed.origin else {}).values()]
    if len(sizes) == 1 and len(sizes[0].shape) == 4:
        image = sizes[0].shape[1:]
        if BATCH * prod(image) > MOST_NUMBERS:
            shape = " x ".join(map(str, image))
            raise InputError(f"the header names images of {shape}: too large to be tried")
        return image
    plan = deployed.plan
    return None if plan is None else (plan.data.channels, *(_image_size(plan),) * 2)


def _inputs(network: nn.Module, image: tuple[int, ...] | None, batch: int) -> Inputs:
    """A random batch of what the network takes: images as it was trained on, where that is known;
    of a size that was guessed, their timing alone may take minutes."""
    if image is not None and takes_one_image(network) and not takes_keywords(network):
        generator = torch.Generator().manual_seed(0)
        return Inputs.of(torch.randn(batch, *image, generator=generator))
    return example_inputs(network, batch)


def _image_size(plan: Plan) -> int:
    """The side of the images that the run was trained on."""
    crops = crop_sizes(plan.data.augment)
    known = known_record(plan.data.name)
    native = known.image_size if known is not None and known.image_size else ASSUMED_SIZE
    return plan.data.image_size or (int(crops[-1]) if crops else native)
