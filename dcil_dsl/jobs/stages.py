"""The stages as Python verbs: resolve, compile, loss.

In:   a Recipe of dcil.load and a model; then what the verb before returned.
Out:  Plan, Dual, a scalar.
Not:  no folder is written and no data read. train.py does all stages at once; `dcil.export` is
      in exporting/export.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics import Diagnostics, InputError
from dcil_dsl.jobs.prepare import read_recipe, warn_in_python
from dcil_dsl.jobs.teachers import Networks, networks_again, open_teachers
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.trace import Traced, TraceError, trace_model
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.losses import total_loss


def resolve(
    recipe: Recipe | str | Path,
    model: nn.Module,
    steps_per_epoch: int,
    example_inputs: object = None,
    class_counts: Sequence[int] | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
) -> Plan:
    """Resolve a recipe for a model: every time in steps. The model is not changed.

    recipe           a Recipe, a Path, the name of a file, or a text (a str with a newline)
    steps_per_epoch  optimizer steps per epoch, at least 1
    example_inputs   one batch: a tuple of arguments, a dict of keyword arguments, or Inputs. The
                     arguments in it are inputs of the graph; all others keep their default. With
                     an example the plan also counts multiply-accumulates, and the graph is compared
                     with the model: modules that would compute other numbers stay opaque
    class_counts     the number of training examples of each class, at least 1 each; needed for a
                     loss with `classes`
    teachers         the networks of the recipe's `network()`, by the names of their paths; others
                     are read from the recipe's folder

    Raises RecipeError; InputError where the model cannot be traced. Warnings about the recipe and
    its fit to the model are Python warnings of class RecipeWarning.
    """
    return resolve_with_networks(
        recipe, model, steps_per_epoch, example_inputs, class_counts, teachers
    )[0]


def resolve_with_networks(
    recipe: Recipe | str | Path,
    model: nn.Module,
    steps_per_epoch: int,
    example_inputs: object = None,
    class_counts: Sequence[int] | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
) -> tuple[Plan, Networks]:
    """`resolve`, and the networks that teach."""
    if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int):
        raise InputError(f"steps_per_epoch is {steps_per_epoch!r}: a whole number, at least 1")
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch is {steps_per_epoch}: at least 1")
    if class_counts is not None and min(class_counts, default=0) < 1:
        raise InputError(f"class_counts is {list(class_counts)}: at least 1 for each class")
    counts = None if class_counts is None else tuple(map(int, class_counts))
    recipe = read_recipe(recipe, {})
    report = Diagnostics(list(recipe.warnings))
    plan = resolve_recipe(recipe, _trace(model, example_inputs), steps_per_epoch, report, counts)
    for diagnostic in report.warnings:
        warn_in_python(diagnostic)
    example = None if example_inputs is None else Inputs.of(example_inputs)
    return open_teachers(recipe, plan, model, example, teachers)


def compile(
    plan: Plan,
    model: nn.Module,
    example_inputs: object = None,
    teachers: Mapping[str, nn.Module] | None = None,
) -> Dual:
    """Build the dual graph: dual(x) is {path: y}. The model is not changed.

    example_inputs  as for `resolve`; not needed where `resolve` had them
    teachers        as for `resolve`; others are read anew, from the current folder

    Raises InputError where the plan was made for another model, or with another teacher.
    """
    _require_plan("compile", plan)
    try:
        given: nn.Module | Traced = model
        if plan.inputs is None and not plan.opaque and example_inputs is not None:
            given = _trace(model, example_inputs)
        dual = compile_plan(plan, given)
        dual.teach(networks_again(plan, teachers))
        return dual
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
    counted: Tensor | None = None,
) -> Tensor:
    """The recipe's loss terms at `step`, weighted and summed: a scalar to call backward on.

    outputs  {path: output of the model} as the dual graph returns them
    target   class numbers, (B,) for logits (B, C), (B, T) for (B, T, C), (B, H, W) for
             (B, C, H, W); None where only `model(...)` and `kl(...)` terms are open
    weights  where the recipe has a `balance`, what dcil_dsl.extras.loss_balance.step keeps of it
    counted  (B, T), -100 at the positions that losses between paths leave out where the target
             does not say so

    Raises InputError where an output lacks what a term reads, and where the recipe balances its
    losses and `weights` is missing.
    """
    _require_plan("loss", plan)
    if not isinstance(outputs, Mapping):
        raise InputError(
            f"the outputs are of type {type(outputs).__name__}, and must be a dictionary, "
            "{path: output of the model}",
            help="dcil.loss(plan, dual(x), target, step)",
        )
    return total_loss(plan, outputs, target, step, weights, counted)


def _require_plan(verb: str, plan: object) -> None:
    if not isinstance(plan, Plan):
        raise InputError(
            f"dcil.{verb} takes a Plan, and this is of type {type(plan).__name__}",
            help="plan = dcil.resolve(recipe, model, steps_per_epoch=...)",
        )


def _trace(model: nn.Module, example_inputs: object) -> Traced:
    try:
        traced = trace_model(model, example_inputs)
        if example_inputs is not None:
            traced = compare_with_model(traced, model, example_inputs)
        return traced
    except TraceError as error:
        raise InputError(str(error), help="`dcil explain E401` says what can be traced") from error
