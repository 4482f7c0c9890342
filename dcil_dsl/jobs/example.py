"""A random batch of what a network to export takes.

In:   a Deployed network.
Out:  Inputs: of the sizes that its header or its run names, else what the model takes at most.
Not:  no data of the run: the numbers are random.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from dcil_dsl.data.datasets import known_record
from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.jobs.prepare import ASSUMED_SIZE
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan, Size
from dcil_dsl.words.augment import crop_sizes
from dcil_dsl.zoo.example import example_inputs, takes_keywords, takes_one_image

# Inputs of networks.
TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
MOST_NUMBERS = 2**28  # of one input
MOST_IN_BATCH = 32  # examples in the largest batch that is tried


def example_of(deployed: Deployed, batch: int) -> Inputs:
    """Inputs of the shapes in the header, else images as the run was trained on, else what the
    network takes at most. InputError for a header with sizes that no network takes."""
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
    """Random numbers of a batch of such inputs. Those that are not real are zeros and ones, which
    are also token numbers and masks; the first of each example is one, so that no mask is empty.
    """
    shape, dtype = (batch, *size.shape[1:]), getattr(torch, size.dtype, None)
    if dtype not in TYPES:
        raise InputError(f"{source} names a type of numbers `{size.dtype}`")
    if MOST_IN_BATCH * prod(size.shape[1:]) > MOST_NUMBERS:
        sides = " x ".join(map(str, size.shape[1:]))
        raise InputError(f"{source} names inputs of {sides}: too large to be tried")
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(*shape, generator=generator).to(dtype)
    drawn = torch.randint(2, shape, generator=generator)
    drawn.view(batch, -1)[:, :1] = 1
    return drawn.to(dtype)


def _image_size(plan: Plan) -> int:
    """The side of the images that the run was trained on."""
    crops = crop_sizes(plan.data.augment)
    known = known_record(plan.data.name)
    native = known.image_size if known is not None and known.image_size else ASSUMED_SIZE
    return plan.data.image_size or (int(crops[-1]) if crops else native)
