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
from torch import Tensor

from dcil_dsl.data.datasets import known_record
from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Artefact, Deployed
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.compact.compaction import Compacted, compact
from dcil_dsl.extras.compact.files import SHAPES, WEIGHTS, expand_tensors, read_shapes, write_shapes
from dcil_dsl.extras.compact.load import MOST_NUMBERS, TYPES, try_inputs
from dcil_dsl.extras.compact.report import Measured, measure, report_of, show_compacted
from dcil_dsl.jobs.data import pick_device
from dcil_dsl.jobs.prepare import ASSUMED_SIZE
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan, Size
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
    network = deployed.network
    example = _inputs(deployed, batch=2)
    try_inputs(network, example, f"the plan or the header of {deployed.source}")
    result = compact(network, example)
    device = pick_device("auto")
    inputs = _inputs(deployed, BATCH).to(device)
    network.eval()
    measured = measure(network.to(device), result.model.to(device), inputs)
    result.model.cpu()
    report = report_of(result, measured)
    write_shapes(folder, result.shapes, result.tensors, report, deployed.origin)
    return result, measured


def _inputs(deployed: Deployed, batch: int) -> Inputs:
    """A random batch of what the network takes: of the shapes in the header, else images as the run
    was trained on, else what the network takes at most, whose timing alone may take minutes."""
    network, plan = deployed.network, deployed.plan
    sizes = deployed.origin.sizes if deployed.origin else {}
    source = f"the header of {deployed.source}"
    known = [_drawn(size, batch, source) for size in sizes.values()]
    if len(known) == 1 and not takes_keywords(network):
        return Inputs.of(known[0])
    if known:
        return Inputs((), dict(zip(sizes, known, strict=True)))
    if plan is not None and takes_one_image(network) and not takes_keywords(network):
        side = _image_size(plan)
        size = Size(shape=(1, plan.data.channels, side, side), dtype="float32")
        return Inputs.of(_drawn(size, batch, f"the plan of {deployed.source}"))
    return example_inputs(network, batch)


def _drawn(size: Size, batch: int, source: str) -> Tensor:
    """Random numbers of a batch of such inputs; zeros for those that are not real."""
    shape, dtype = (batch, *size.shape[1:]), getattr(torch, size.dtype, None)
    if dtype not in TYPES:
        raise InputError(f"{source} names a type of numbers `{size.dtype}`")
    if BATCH * prod(size.shape[1:]) > MOST_NUMBERS:
        sides = " x ".join(map(str, size.shape[1:]))
        raise InputError(f"{source} names inputs of {sides}: too large to be tried")
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _image_size(plan: Plan) -> int:
    """The side of the images that the run was trained on."""
    crops = crop_sizes(plan.data.augment)
    known = known_record(plan.data.name)
    native = known.image_size if known is not None and known.image_size else ASSUMED_SIZE
    return plan.data.image_size or (int(crops[-1]) if crops else native)
