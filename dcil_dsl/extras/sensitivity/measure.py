"""Measure how sensitive a network is to pruning each of its layers.

In:   a trained network, the names of weights, held-out batches of its task, sparsities.
Out:  its loss and the first metric of the task, unpruned and with each weight pruned alone at each
      sparsity.
Not:  nothing is trained, and the network is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.extras.sensitivity.least_loss import num_gone
from dcil_dsl.masking.select import keep_top
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.side_effects import drawn_apart
from dcil_dsl.tasks import IMAGES, Task
from dcil_dsl.tasks.own_loss import loss_or_none
from dcil_dsl.words.losses import Loss, ModelLoss
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.tensors.widest import widest

PATH = "network"  # the name of the only path of the loss


@dataclass(frozen=True)
class Quality:
    """loss: the mean of the usual loss of the task, for classes in nats per example; score: the
    first metric of the task."""

    loss: float
    score: float


@torch.no_grad()
def measure_layers(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Any],
    levels: Sequence[float],
    tell: Callable[[str], None] = lambda name: None,
    task: Task = IMAGES,
) -> tuple[Quality, dict[str, tuple[Quality, ...]]]:
    """The unpruned quality; for each weight the quality at each level, the others unpruned.

    The masks are those of the smallest magnitudes, made once, on the weights as they are: of n
    weights n (1 - level) stay, rounded down, at least one. Evaluation mode, float32.
    batches  of the task, on the model's device
    tell     called with each name before it is measured
    Raises InputError where the loss is not finite, with nothing pruned or with one weight at one
    level: a profile of it would mean nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        whole = measure(model, batches, task)
        if not isfinite(whole.loss):
            raise InputError("the loss of the unpruned network is not a finite number")
        found = {}
        for name in names:
            tell(name)
            weight = model.get_parameter(name)
            found[name] = tuple(_pruned(model, weight, level, batches, task) for level in levels)
            for level, quality in zip(levels, found[name], strict=True):
                if not isfinite(quality.loss):
                    raise InputError(
                        f"the loss with {name} pruned to {100 * level:g} % is not a finite number"
                    )
        return whole, found
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[Any], task: Task = IMAGES) -> Quality:
    """The quality of the network as it is, over all batches together."""
    from dcil_dsl.tasks.measures import Meter  # torchmetrics: not of a core installation

    loss_word: Any = words_at("a loss")[task.default_loss]
    loss_of: Loss = loss_word(path=PATH)
    device = next(model.parameters()).device
    total, num_examples = torch.zeros((), dtype=widest(device), device=device), 0
    meter: Meter | None = None
    for batch in batches:
        inputs, targets, count = task.inputs(batch), task.targets(batch), task.count(batch)
        output = model(*inputs.args, **inputs.kwargs)
        if meter is None:
            task.check(output, targets)
            meter = Meter(device, task.settings(output))
        meter.update(task.compared(output, targets, count), task.broken(output, count), True)
        total += count * _loss(loss_of, model, inputs, output, targets)
        num_examples += count
    assert meter is not None, "no batch"
    loss = float(total) / num_examples
    return Quality(loss, meter.compute(1).get(task.metrics[0], loss))


def _loss(loss_of: Loss, model: nn.Module, inputs: Inputs, output: Any, targets: Any) -> Tensor:
    """The loss of a batch. A model that computes its own in training mode alone is called in it,
    with the same random numbers every time; its running statistics are restored."""
    if isinstance(loss_of, ModelLoss) and loss_or_none(output) is None:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        modes = [(module, module.training) for module in model.modules()]
        try:
            with torch.enable_grad(), drawn_apart(0):
                output = model.train()(*inputs.args, **inputs.kwargs)
        finally:
            for module, mode in modes:
                module.training = mode
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return loss_of.term({PATH: output}, targets).detach()


def _pruned(
    model: nn.Module, weight: nn.Parameter, level: float, batches: Sequence[Any], task: Task
) -> Quality:
    num_keep = weight.numel() - num_gone(weight.numel(), level)
    mask = keep_top([weight.detach().abs()], num_keep, [1])[0]
    before = weight.detach().clone()
    try:
        weight.masked_fill_(~mask, 0.0)  # in place: tied weights are one tensor
        return measure(model, batches, task)
    finally:
        weight.copy_(before)
