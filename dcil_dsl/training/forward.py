"""Outputs, losses and counts of a batch: the part of a step that torch.compile may take.

In:   a dual graph and Options; images, labels, the losses that are open.
Out:  the loss to minimise; what is summed up over an epoch.
Not:  no backward pass (learner.py), no formula of a loss (losses.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.losses import loss_term, weighed
from dcil_dsl.training.machine import Options, autocast
from dcil_dsl.training.metrics import num_correct
from dcil_dsl.words.outputs import logits_of

Forward = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]


def make_forward(dual: Dual, options: Options, weights: Tensor | None = None) -> Forward:
    """(images, labels, places in plan.losses that are open) -> the loss to minimise, and sums.

    weights  of a `balance`, by loss: a tensor that is read in every step
    """
    plan = dual.plan

    def forward(images: Tensor, labels: Tensor, active: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        with autocast(plan, options):
            outputs = dual(images)
        total, values = weigh(plan, outputs, labels, active, weights)
        return total, sums_of(plan, outputs, labels, values)

    return forward


def weigh(
    plan: Plan,
    outputs: Mapping[str, object],
    labels: Tensor,
    active: Iterable[int],
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """sum of coefficient * term over some of plan.losses; the terms, detached, by their places.

    weights  of a `balance`, by loss
    """
    total, values = 0.0, {}
    for i in active:
        term = loss_term(plan.losses[i], outputs, labels)
        total = total + weighed(plan, i, term, weights)
        values[i] = term.detach()
    return total, values


def sums_of(
    plan: Plan, outputs: Mapping[str, object], labels: Tensor, values: Mapping[int, Tensor]
) -> Tensor:
    """float64 sums over the batch: of each of plan.losses (0 where not in `values`), then the
    number of right answers of each of plan.paths (0 where not run).
    """
    zero = torch.zeros((), dtype=torch.float64, device=labels.device)
    sums = [
        values[i].double() * len(labels) if i in values else zero for i in range(len(plan.losses))
    ]
    for path in plan.paths:
        if path.name in outputs:
            logits = logits_of(outputs[path.name])
            correct = num_correct(logits, labels[: len(logits)]).double()
            sums.append(correct * (len(labels) / len(logits)))  # of the examples it has seen
        else:
            sums.append(zero)
    return torch.stack(sums)
