"""Weights of loss terms, inversely proportional to the spread of their gradients.

In:   a dual graph, a function that puts the gradients of some terms in place.
Out:  the weights by loss in `memory`, which the step's loss is multiplied by.
Not:  nothing else of the step changes: no weight, running statistic or score.

At every multiple of `every`, for the terms k of one path that are open,

    s_k = standard deviation of dL_k/dw over all parameters, as `update` routes it
    weight_k <- average * weight_k + (1 - average) * max_j(s_j) / s_k

so that the gradients of a path's terms reach the same spread; at first all weights are 1. Maddu et
al. 2022, arXiv:2107.00940, whose code (mosaic-group/inverse-dirichlet-pinn) has average 0.5, every
5 epochs, and the term of the differential equation in the place of the largest. Terms of two
paths are not compared: they teach other weights, so that a common factor would be a learning rate.
A coefficient of the recipe multiplies the term in addition to its weight, and is not part of s_k. A
term without a gradient at the moment, its s_k zero or within the rounding of the largest (two paths
that answer alike have such a divergence), keeps its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.extras.loss_balance.settings import SpreadSettings
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.integrate import copied_buffers, put_back_buffers
from dcil_dsl.training.step import Batch, Step, Wrapper

WEIGHTS = "balance/weights"


class BalancedStep(Wrapper):
    """A step whose loss terms have weights, which it measures now and then."""

    def __init__(self, inner: Step):
        plain = inner.plain
        super().__init__(inner, start_weights(plain.dual.plan, plain.first_bad.device))

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        balanced = replace(batch, weights=self.memory[WEIGHTS])

        def learn(term: int) -> None:
            self.plain.gradients(replace(balanced, losses=(term,)))

        weigh_terms(self.plain.dual, batch.step, learn, self.memory)
        return self.inner.gradients(balanced)

    def facts(self) -> dict[str, Any]:
        weights = self.memory[WEIGHTS].tolist()
        pairs = zip(self.plain.dual.plan.losses, weights, strict=True)
        return self.inner.facts() | {"balance": {loss.name: weight for loss, weight in pairs}}


def start_weights(plan: Plan, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A weight of 1 for each of plan.losses, (losses,) float64; nothing without a `balance`."""
    if not isinstance(plan.train.balance, SpreadSettings):
        return {}
    return {WEIGHTS: torch.ones(len(plan.losses), dtype=torch.float64, device=device)}


def weigh_terms(
    dual: Dual, step: int, learn: Callable[[int], object], memory: dict[str, Tensor]
) -> None:
    """Bring the weights up to date, where `step` is one of those at which they are measured.

    learn    forward and backward of one of plan.losses alone, coefficient included, on the step's
             batch with the step's random numbers; adds to the gradients, which are None before
    memory   of start_weights
    """
    word = dual.plan.train.balance
    if not isinstance(word, SpreadSettings):
        return
    groups = word.measured_at(dual.plan.losses, step)
    if not groups:
        return
    weights, before = memory[WEIGHTS], copied_buffers(dual)
    old = weights.clone()
    weights.fill_(1)  # in place: the loss reads them
    spreads = {i: _spread(dual, i, learn) for group in groups for i in group}
    put_back_buffers(dual, before)
    weights.copy_(old)
    for group in groups:
        own = torch.stack([spreads[i] for i in group])
        fresh = own.max() / own
        teaches = fresh.isfinite() & (fresh < 1 / _rounding(dual))
        keep, so_far = word.average, torch.stack([old[i] for i in group])
        mixed = torch.where(teaches, keep * so_far + (1 - keep) * fresh, so_far)
        for i, weight in zip(group, mixed, strict=True):  # by a list of places, a device would wait
            weights[i].copy_(weight)


def _rounding(dual: Dual) -> float:
    """What share of the largest gradient the rounding of its arithmetic may be, generously."""
    return 100 * torch.finfo(next(dual.parameters()).dtype).eps


def _spread(dual: Dual, i: int, learn: Callable[[int], object]) -> Tensor:
    """s_k of plan.losses[i], its coefficient divided out: a number, float64."""
    learn(i)
    total = square = torch.zeros((), dtype=torch.float64, device=next(dual.parameters()).device)
    count = 0
    for _, parameter in dual.trainable():
        count += parameter.numel() if parameter.requires_grad else 0
        if parameter.grad is not None:  # else its share of both sums is 0
            gradient = parameter.grad.double()
            total, square = total + gradient.sum(), square + gradient.square().sum()
            parameter.grad = None
    spread = ((square - total**2 / count) / (count - 1)).clamp(min=0).sqrt()
    return spread / dual.plan.losses[i].coefficient
