"""The stages as Python verbs: resolve, compile, loss.

In:   a Recipe of dcil.load and a model; then what the verb before returned.
Out:  Plan, Dual, a scalar.
Not:  no folder is written and no data read; train.py does the whole at once. The verb `export`
      is the folder of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics import Diagnostics, InputError
from dcil_dsl.jobs.prepare import warn_in_python
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.trace import Traced, TraceError, trace_model
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss


def resolve(
    recipe: Recipe,
    model: nn.Module,
    steps_per_epoch: int,
    example_inputs: object = None,
    class_counts: Sequence[int] | None = None,
) -> Plan:
    """What the recipe means for this model, in steps. The model is not changed.

    steps_per_epoch  optimiser steps in an epoch, at least 1
    example_inputs   one batch: a tuple of arguments, a dict of keyword arguments, or Inputs. What
                     they give is an input of the graph, all else is held at its default. With them
                     the plan also counts multiply-accumulates, and the graph is compared with the
                     model: parts that would compute other numbers stay opaque
    class_counts     the training examples of each class, each at least 1: a loss with `classes`
                     cannot do without them

    Raises RecipeError; InputError where the model cannot be traced. Warnings of the recipe and
    of its fit to the model are Python's, of class RecipeWarning.
    """
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch is {steps_per_epoch}: at least 1")
    if class_counts is not None and min(class_counts, default=0) < 1:
        raise InputError(f"class_counts is {list(class_counts)}: each class has an example")
    counts = None if class_counts is None else tuple(map(int, class_counts))
    report = Diagnostics(list(recipe.warnings))
    plan = resolve_recipe(recipe, _trace(model, example_inputs), steps_per_epoch, report, counts)
    for diagnostic in report.warnings:
        warn_in_python(diagnostic)
    return plan


def compile(plan: Plan, model: nn.Module, example_inputs: object = None) -> Dual:
    """The dual graph: dual(x) is {path: y}. The model is not changed.

    example_inputs  as of resolve; not needed where resolve had them

    Raises InputError where the plan was made for another model.
    """
    try:
        if plan.inputs is None and not plan.opaque and example_inputs is not None:
            return compile_plan(plan, _trace(model, example_inputs))
        return compile_plan(plan, model)
    except TraceError as error:
        raise InputError(str(error), help="`dcil explain E401` says what can be traced") from error
    except KeyError as error:
        raise InputError(f"this is not the model that was planned: {error.args[0]}") from error


def loss(
    plan: Plan,
    outputs: Mapping[str, object],
    target: Tensor | None,
    step: int,
    weights: Tensor | None = None,
) -> Tensor:
    """The recipe's loss terms at `step`, weighted and summed: a scalar to call backward on.

    outputs  {path: what the model returns} as the dual graph gives them, logits or more
    target   class numbers, (B,) for logits (B, C), (B, T) for (B, T, C), (B, H, W) for
             (B, C, H, W); None where only `model(...)` and `kl(...)` terms are open
    weights  where the recipe has a `balance`, what dcil_dsl.extras.loss_balance.step keeps of it

    Raises InputError where an output has not what a term reads.
    """
    return total_loss(plan, outputs, target, step, weights)


def _trace(model: nn.Module, example_inputs: object) -> Traced:
    try:
        traced = trace_model(model, example_inputs)
        if example_inputs is not None:
            traced = compare_with_model(traced, model, example_inputs)
        return traced
    except TraceError as error:
        raise InputError(str(error), help="`dcil explain E401` says what can be traced") from error
