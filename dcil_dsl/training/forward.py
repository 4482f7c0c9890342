"""Outputs, losses and counts of a batch: the part of a step that torch.compile may take.

In:   a dual graph, its task and Options; inputs, targets, the losses that are open.
Out:  the loss to minimize; what is summed up over an epoch.
Not:  no backward pass (step.py), no formula of a loss (losses.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.masking.recompute import compiled
from dcil_dsl.plan.plan import Plan
from dcil_dsl.tasks import Task
from dcil_dsl.training.losses import loss_term, weighed
from dcil_dsl.training.machine import REDUCE_OVERHEAD, Options, autocast

# (args, kwargs, targets, examples, places in plan.losses that are open, weights of plan.losses)
# -> loss, sums
Forward = Callable[..., tuple[Tensor, Tensor]]


def make_forward(dual: Dual, options: Options, task: Task) -> tuple[Forward, Forward]:
    """The forward of a step, eager, and as the options have it run."""

    def forward(
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Any,
        count: int,
        active: tuple[int, ...],
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        with autocast(dual.plan, options):
            outputs = dual(*args, **kwargs)
        total, values = weigh(dual.plan, outputs, targets, active, weights)
        return total, sums_of(dual.plan, task, outputs, targets, count, values)

    return forward, compiled_forward(forward, dual.plan, options) if options.compile else forward


def compiled_forward(forward: Forward, plan: Plan, options: Options) -> Forward:
    """One graph for each phase and each set of losses; new masks need no new graph.

    Recorded as CUDA graphs, which read masks and weights where they lie, it writes its results
    to the same place at each replay: what is returned are copies.
    """
    config = torch._dynamo.config
    num_graphs = 2 * (len(plan.phases) + 2 * len(plan.losses))
    num_graphs += len(plan.phases) * len(plan.losses)  # of each loss alone, to balance them
    config.recompile_limit = max(config.recompile_limit, num_graphs)  # beyond it all runs eagerly
    if options.compile_mode != REDUCE_OVERHEAD:
        return compiled(forward, dynamic=False)
    recorded = compiled(forward, dynamic=False, mode=REDUCE_OVERHEAD)

    def replay(*given: Any) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        loss, sums = recorded(*given)
        return loss.clone(), sums.clone()

    return replay


def weigh(
    plan: Plan,
    outputs: Mapping[str, object],
    targets: Any,
    active: Iterable[int],
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """sum of coefficient * term over some of plan.losses; the terms, detached, by their places.

    weights  of a `balance`, by loss
    """
    total, values = 0.0, {}
    for i in active:
        term = loss_term(plan.losses[i], outputs, targets)
        total = total + weighed(plan, i, term, weights)
        values[i] = term.detach()
    return total, values


def sums_of(
    plan: Plan,
    task: Task,
    outputs: Mapping[str, object],
    targets: Any,
    count: int,
    values: Mapping[int, Tensor],
) -> Tensor:
    """float64 sums over the batch: of each of plan.losses (0 where not in `values`), then the
    score of each of plan.paths (0 where not run).
    """
    device = next(iter(values.values())).device
    zero = torch.zeros((), dtype=torch.float64, device=device)
    sums = [values[i].double() * count if i in values else zero for i in range(len(plan.losses))]
    for path in plan.paths:
        if path.name in outputs:
            sums.append(task.score(outputs[path.name], targets, count))
        else:
            sums.append(zero)
    return torch.stack(sums)
