"""The loss that a plan asks for at a step.

In:   a Plan, the outputs of a dual graph {path: y}, the labels and the step.
Out:  each open term by its name, without its coefficient; their weighted sum.
Not:  no formula (words/losses.py); which weight learns from which path is in the dual graph.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan, WeightedLoss


def open_losses(plan: Plan, step: int) -> tuple[int, ...]:
    """The places in plan.losses of the terms whose window covers `step`."""
    return tuple(i for i, loss in enumerate(plan.losses) if loss.window.covers(step))


def loss_terms(
    plan: Plan, outputs: Mapping[str, object], target: Tensor | None, step: int
) -> dict[str, Tensor]:
    """The terms open at `step` by name: scalars, means over the batch, coefficients left out.

    outputs  {path: what the model returns on it}
    target   class numbers of the logits' shape without its classes: (B,), (B, T), (B, H, W); a
             position of -100 counts for nothing in cross entropy. Or shares of classes (B, K), as
             mixed examples have them, K at most C. None where no term needs it.

    Raises InputError where an output has no such logits or no loss of its own.
    """
    losses = [plan.losses[i] for i in open_losses(plan, step)]
    return {loss.name: loss_term(loss, outputs, target) for loss in losses}


def total_loss(
    plan: Plan,
    outputs: Mapping[str, object],
    target: Tensor | None,
    step: int,
    weights: Tensor | None = None,
) -> Tensor:
    """sum over the open terms of coefficient * weight * term, a scalar to call backward on.

    weights  one for each of plan.losses, those of a `balance`; without one all are 1
    """
    if plan.train.balance is not None and weights is None:
        raise InputError(
            "the recipe balances its losses, and their weights are not given",
            help="dcil_dsl.extras.loss_balance.step has them: start_weights, weigh_terms",
        )
    terms = loss_terms(plan, outputs, target, step)
    assert terms, f"no loss is open at step {step}; resolve lets no such plan pass"
    places = open_losses(plan, step)
    return sum(weighed(plan, i, terms[plan.losses[i].name], weights) for i in places)


def refuse_constant(loss: Tensor) -> None:
    """InputError for a loss from which no gradient flows back to any weight."""
    if not loss.requires_grad:
        raise InputError(
            "the loss depends on no weight that learns: the model's output is detached",
            help="leave `.detach()` and torch.no_grad() out of its forward, or unfreeze weights",
        )


def weighed(plan: Plan, i: int, term: Tensor, weights: Tensor | None) -> Tensor:
    """What the term of plan.losses[i] adds to the sum."""
    own = plan.losses[i].coefficient * term
    return own if weights is None else weights[i].to(own.dtype) * own


def loss_term(loss: WeightedLoss, outputs: Mapping[str, object], target: Tensor | None) -> Tensor:
    """One term, in float32 or wider whatever the outputs are in."""
    try:
        return loss.term.term(outputs, target, loss.batch)
    except InputError as error:
        raise InputError(f"`{loss.name}`: {error.message}", help=error.help) from None
