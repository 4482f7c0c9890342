"""The loss of a plan at a step, and the sums of a batch that are computed with it.

In:   a Plan, the outputs of a dual graph {path: y}, the labels and the step.
Out:  each open term by its name, without its coefficient; their weighted sum; the forward of a
      step, which torch.compile may take, with the sums of its batch.
Not:  no formula (words/losses.py), no backward pass (step.py); which weight learns from which path
      is in the dual graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.inner_checkpoints import compiled
from dcil_dsl.plan.plan import Plan, WeightedLoss
from dcil_dsl.tasks import Task
from dcil_dsl.training.machine import REDUCE_OVERHEAD, Options, autocast
from dcil_dsl.words.tensors.outputs import counted_positions
from dcil_dsl.words.tensors.widest import widest


def open_losses(plan: Plan, step: int) -> tuple[int, ...]:
    """The places in plan.losses of the terms whose window covers `step`."""
    return tuple(i for i, loss in enumerate(plan.losses) if loss.window.covers(step))


def loss_terms(
    plan: Plan,
    outputs: Mapping[str, object],
    target: Tensor | None,
    step: int,
    counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms open at `step` by name: scalars, means over the batch, coefficients left out.

    outputs  {path: what the model returns on it}
    target   class numbers of the logits' shape without its classes: (B,), (B, T), (B, H, W); a
             position of -100 counts for nothing. Or shares of classes (B, K), as mixed examples
             have them, K at most C. None where no term needs it.
    counted  (B, T), -100 at the positions that losses between paths leave out where the target
             does not say so

    Raises InputError where an output has no such logits, or no loss that the model computes.
    """
    losses = [plan.losses[i] for i in open_losses(plan, step)]
    return {loss.name: loss_term(loss, outputs, target, counted) for loss in losses}


def total_loss(
    plan: Plan,
    outputs: Mapping[str, object],
    target: Tensor | None,
    step: int,
    weights: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """sum over the open terms of coefficient * weight * term, a scalar to call backward on.

    weights  one for each of plan.losses, those of a `balance`; without one all are 1
    counted  as loss_terms takes it
    """
    if plan.train.balance is not None and weights is None:
        raise InputError(
            "the recipe balances its losses, and their weights are not given",
            help="dcil_dsl.extras.loss_balance.step has them: start_weights, weigh_terms",
        )
    terms = loss_terms(plan, outputs, target, step, counted)
    assert terms, f"no loss is open at step {step}; resolve lets no such plan pass"
    places = open_losses(plan, step)
    first, *others = (weighed(plan, i, terms[plan.losses[i].name], weights) for i in places)
    return sum(others, first)


def refuse_constant(loss: Tensor) -> None:
    """InputError for a loss that gives no weight a gradient."""
    if not loss.requires_grad:
        raise InputError(
            "the loss depends on no weight that learns: the model's output is detached",
            help="leave `.detach()` and torch.no_grad() out of its forward, or unfreeze weights",
        )


def weighed(plan: Plan, i: int, term: Tensor, weights: Tensor | None) -> Tensor:
    """The summand of plan.losses[i]."""
    own = plan.losses[i].coefficient * term
    return own if weights is None else weights[i].to(own.dtype) * own


def loss_term(
    loss: WeightedLoss,
    outputs: Mapping[str, object],
    target: Tensor | None,
    counted: Tensor | None = None,
) -> Tensor:
    """One term, in float32 or wider whatever the type of the outputs."""
    try:
        return loss.term.term(outputs, target, loss.batch, counted)
    except InputError as error:
        raise InputError(f"`{loss.name}`: {error.message}", help=error.help) from None


# -- the forward of a step ---------------------------------------------------------------------


# (args, kwargs, targets, number of examples, places in plan.losses that are open, weights of
# plan.losses) -> loss, sums
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
        total, values = weigh(
            dual.plan, outputs, targets, active, weights, counted_positions(kwargs)
        )
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
    counted: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """sum of coefficient * term over some of plan.losses; the terms, detached, by their places.

    weights  of a `balance`, by loss
    counted  as loss_terms takes it
    """
    total: Tensor | float = 0.0
    values = {}
    for i in active:
        term = loss_term(plan.losses[i], outputs, targets, counted)
        total = total + weighed(plan, i, term, weights)
        values[i] = term.detach()
    assert isinstance(total, Tensor), "a step without a loss"
    return total, values


def sums_of(
    plan: Plan,
    task: Task,
    outputs: Mapping[str, object],
    targets: Any,
    count: int,
    values: Mapping[int, Tensor],
) -> Tensor:
    """float64 sums over the batch (see `widest`): of each of plan.losses (0 where not in `values`),
    then the score of each of plan.paths (0 where not run).
    """
    device = next(iter(values.values())).device
    wide = widest(device)
    zero = torch.zeros((), dtype=wide, device=device)
    sums = [values[i].to(wide) * count if i in values else zero for i in range(len(plan.losses))]
    for path in plan.paths:
        if path.name in outputs:
            sums.append(task.score(outputs[path.name], targets, count))
        else:
            sums.append(zero)
    return torch.stack(sums)
