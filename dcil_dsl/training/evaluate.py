"""The metrics of every path on held-out data.

In:   a dual graph, or a plain network, and held-out batches of a task.
Out:  {path: {metric: value}}, with "not_finite", a count; plain errors where data and model do not
      fit.
Not:  no path is chosen, no weight is changed, and no metric is computed here (tasks/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.tasks.task import Task, sliced, stand_in
from dcil_dsl.training.machine import Options, autocast, laid_out
from dcil_dsl.training.process import Wish
from dcil_dsl.training.step import BROKEN

Accuracies = dict[str, dict[str, float]]


@torch.no_grad()
def evaluate(
    dual: Dual, loader: BatchLoader, options: Options = Options(), wish: Wish | None = None
) -> Accuracies | None:
    """The metrics of every path on all of the data, in eval mode; the mode is restored.

    The number of examples without a finite output is BROKEN, where there are any. None if a signal
    came before the end. InputError where the data is empty or does not fit the model.
    """
    check_not_empty(loader)
    was_training = dual.training
    dual.eval()
    try:
        return _evaluate(dual, dual.plan, loader, options, wish or Wish())
    finally:
        dual.train(was_training)


@torch.no_grad()
def evaluate_plain(
    model: nn.Module, plan: Plan, loader: BatchLoader, options: Options, wish: Wish
) -> dict[str, float] | None:
    """The metrics of a network without paths, which `model` stays in eval mode for."""
    model.eval()

    def forward(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {plan.deploy: model(*args, **kwargs)}

    found = _evaluate(forward, plan, loader, options, wish)
    return None if found is None else found[plan.deploy]


def check_not_empty(loader: BatchLoader) -> None:
    """InputError for an empty held-out part, before an epoch rather than after it."""
    if not loader.num_examples:
        raise InputError("there is no data to evaluate on: its held-out part is empty")


def check_fit(
    dual: Dual, task: Task, inputs: Inputs, targets: object, count: int, options: Options
) -> None:
    """Try one batch, in eval mode so that nothing changes. InputError if it does not fit."""
    if not all(t.isfinite().all() for t in inputs.tensors() if t.is_floating_point()):
        raise InputError(
            f"the {task.noun} of the first batch hold numbers that are not finite",
            help=f"look at the {task.noun}, and at the mean and the deviation of the data",
        )
    first = Inputs(*sliced((inputs.args, inputs.kwargs), count, 0, 1))
    for output in outputs_for(dual, task, first, options).values():
        task.check(output, targets)


def outputs_for(dual: Dual, task: Task, first: Inputs, options: Options) -> dict[str, Any]:
    """The outputs of every path for one example, in eval mode. InputError if it does not fit."""
    was_training = dual.training
    dual.eval()
    try:
        with torch.no_grad(), autocast(dual.plan, options):
            outputs: dict[str, Any] = dual(*first.args, **first.kwargs)
            return outputs
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        # An error of one thing only: had it been the model's own, tracing would have met it.
        shapes = ", ".join(str(tuple(t.shape[1:])) for t in first.tensors())
        raise InputError(
            f"the model does not take {task.noun} of shape {shapes}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            help="set `image_size` and `channels` in the recipe's `data` to what the model takes"
            if task.noun == "images"
            else None,
        ) from None
    finally:
        dual.train(was_training)


def _evaluate(
    forward: Callable[..., dict[str, Any]],
    plan: Plan,
    loader: BatchLoader,
    options: Options,
    wish: Wish,
) -> Accuracies | None:
    from dcil_dsl.tasks.measures import Meter  # torchmetrics: not of a core installation

    task, ranks, meters = loader.task, options.ranks, dict[str, Meter]()
    for batch in loader.epoch(0):
        if ranks.any(wish.is_there):
            return None
        is_stand_in = not task.count(batch)
        if is_stand_in:  # no part of a small batch
            batch = stand_in(batch)
        inputs, targets, count = task.inputs(batch), task.targets(batch), task.count(batch)
        inputs = laid_out(inputs, options)
        with autocast(plan, options):
            outputs = forward(*inputs.args, **inputs.kwargs)
        for path, output in outputs.items():
            if path not in meters:
                if not is_stand_in:
                    task.check(output, targets)
                meters[path] = Meter(torch.device(options.device), task.settings(output))
            try:
                meters[path].update(
                    task.compared(output, targets, count),
                    task.broken(output, count),
                    not is_stand_in,
                )
            except InputError:
                task.check(output, targets)  # may say more plainly what does not fit
                raise
    found = {}
    for path, meter in meters.items():
        found[path] = meter.compute(ranks.count)
        if broken := int(ranks.sum(meter.num_broken)):
            found[path][BROKEN] = broken
    return found
