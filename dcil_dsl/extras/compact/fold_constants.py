"""What a channel always gave is given by others, so that it can go.

In:   the layers' readings, and the channels that go.
Out:  the tensors that change, by name, in their full shapes.
Not:  nothing is cut yet: the network with these tensors computes what it did before, whatever
      the channels that go may hold.

    y = W x + b,   x_k = c for every input     ==>     y = W' x' + (b + c W_k)

Through zero padding a constant is not one: at the border fewer taps meet it. There a channel r
that stays and is constant too carries the others exactly, W_r += sum over k of (c_k / c_r) W_k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcil_dsl.extras.compact.constants import add_up
from dcil_dsl.extras.compact.dead_channels import Reading
from dcil_dsl.extras.compact.operations import BatchNorm


@torch.no_grad()
def fold_constants(model: nn.Module, given: list[Reading], gone: Tensor) -> dict[str, Tensor]:
    """Hand the constants of channels that go to biases, running means and carriers."""
    folded: dict[str, Tensor] = {}
    for reading in given:
        carried = reading.carried(gone)
        if not carried.any():
            continue
        call = reading.read.weighing
        weight = model.get_parameter(call.weight).detach()
        constant = torch.where(carried, reading.constant, 0.0)
        if reading.receiver is not None:
            delta = add_up(call.blocks(weight), constant).reshape(-1)
            owner, _, name = reading.receiver.rpartition(".")
            module = model.get_submodule(owner)
            before = getattr(module, name).detach()
            if isinstance(module, BatchNorm) and name == "running_mean":
                delta = -delta
            folded[reading.receiver] = (before.double() + delta).to(before)
        else:
            folded[call.weight] = _carried(reading, weight, constant[0], gone)
    return folded


def _carried(reading: Reading, weight: Tensor, constant: Tensor, gone: Tensor) -> Tensor:
    """The weight (of one group) whose carrier's column does the work of the others too."""
    carriers = reading.carriers(gone)
    carrier = int(carriers.abs().argmax())
    columns = weight.double().movedim(0 if reading.read.weighing.transposed else 1, -1)
    share = constant / carriers[carrier]
    columns = columns.clone()
    matter = constant != 0
    columns[..., carrier] += (columns[..., matter] * share[matter]).sum(-1)
    return columns.movedim(-1, 0 if reading.read.weighing.transposed else 1).to(weight)
