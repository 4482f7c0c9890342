"""Measure how sensitive a network is to pruning each of its layers.

In:   a trained classifier, the names of weights, held-out batches, sparsities.
Out:  its loss and accuracy, unpruned and with each weight pruned alone at each sparsity.
Not:  nothing is trained, and the network is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.extras.sensitivity.least_loss import num_gone
from dcil_dsl.masking.select import keep_top
from dcil_dsl.words.tensors.outputs import logits_of

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Quality:
    """loss: the mean cross entropy, in nats per example; top1: the accuracy."""

    loss: float
    top1: float


@torch.no_grad()
def measure_layers(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    levels: Sequence[float],
    tell: Callable[[str], None] = lambda name: None,
) -> tuple[Quality, dict[str, tuple[Quality, ...]]]:
    """The unpruned quality; for each weight the quality at each level, the others unpruned.

    The masks are those of the smallest magnitudes, made once, on the weights as they are: of n
    weights n (1 - level) stay, rounded down, at least one. Evaluation mode, float32.
    batches  images and class numbers on the model's device
    tell     called with each name before it is measured
    Raises InputError where the loss is not finite, with nothing pruned or with one weight at one
    level: a profile of it would mean nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        whole = measure(model, batches)
        if not isfinite(whole.loss):
            raise InputError("the loss of the unpruned network is not a finite number")
        found = {}
        for name in names:
            tell(name)
            weight = model.get_parameter(name)
            found[name] = tuple(_pruned(model, weight, level, batches) for level in levels)
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
def measure(model: nn.Module, batches: Sequence[Batch]) -> Quality:
    """The quality of the network as it is, over all batches together."""
    num_examples = 0
    loss, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
    for images, labels in batches:
        logits = logits_of(model(images)).float()
        loss = loss.to(logits.device) + F.cross_entropy(logits, labels, reduction="sum").double()
        correct = correct.to(logits.device) + (logits.argmax(1) == labels).sum()
        num_examples += len(labels)
    return Quality(float(loss) / num_examples, int(correct) / num_examples)


def _pruned(
    model: nn.Module, weight: nn.Parameter, level: float, batches: Sequence[Batch]
) -> Quality:
    num_keep = weight.numel() - num_gone(weight.numel(), level)
    mask = keep_top([weight.detach().abs()], num_keep, [1])[0]
    before = weight.detach().clone()
    try:
        weight.masked_fill_(~mask, 0.0)  # in place: tied weights are one tensor
        return measure(model, batches)
    finally:
        weight.copy_(before)
