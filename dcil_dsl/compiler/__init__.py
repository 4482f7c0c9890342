"""Plan x Traced -> Dual: the passes (passes.py), run in their order.

In:   a Plan and the traced model that it was resolved for.
Out:  a Dual: a GraphModule that maps x to {path: output}. Its masks keep every weight.
Not:  no training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.passes import PASSES, Context, passes_of
from dcil_dsl.compiler.privatize import add_twins, twin_names
from dcil_dsl.compiler.teachers import make_means
from dcil_dsl.compiler.verify import verify_targets
from dcil_dsl.compiler.weight_state import add_rule_state, add_scores
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.collector import collector_paused
from dcil_dsl.model.trace import Traced, trace_model
from dcil_dsl.plan.plan import Phase, Plan
from dcil_dsl.words.weight_groups import frozen_names

__all__ = ["PASSES", "Dual", "add_masks_and_twins", "compile_plan", "run_passes", "trace_for"]


@collector_paused()
def compile_plan(plan: Plan, model: nn.Module | Traced, example_inputs: object = None) -> Dual:
    """Compile a model to its Dual. The model itself is not changed.

    model           an nn.Module, or its Traced, which becomes part of the Dual
    example_inputs  determine the inputs of the graph where the plan does not name them

    Raises TraceError if the model cannot be traced, KeyError if it is not the model that the plan
    was resolved for, and InputError if a package of words is not installed or the plan describes
    impossible inputs.
    """
    for word in plan.words():
        word.require()
    traced = model if isinstance(model, Traced) else trace_for(plan, model, example_inputs)
    model = traced.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for layer in plan.layers:
        weight = parameters.get(layer.parameter)
        if weight is None or tuple(weight.shape) != layer.shape:
            raise KeyError(f"the plan's `{layer.parameter}` {layer.shape} is not in this model")
    modules = dict(model.named_modules(remove_duplicate=False))
    for entry in plan.privates:
        if not entry.module or entry.module not in modules:
            raise KeyError(f"the plan's private `{entry.module}` is not in this model")
    means = make_means(model, plan)
    add_masks_and_twins(model, plan)
    graphs = {}
    for training in (True, False):
        for index, phase in enumerate(plan.phases):
            if not training:
                phase = _every_path(plan, phase)
            graph = traced.graph(training)
            passes = run_passes(graph, model, plan, phase, training)
            graphs[training, index] = _last(passes)
    return Dual(model, graphs, plan, traced.arguments, means)


def trace_for(plan: Plan, model: nn.Module, example_inputs: object = None) -> Traced:
    """The model traced as for the plan: with the same inputs and the same opaque modules."""
    keep = {part.module: part.reason for part in plan.opaque}
    if plan.inputs is None and example_inputs is not None:
        return trace_model(model, example_inputs, keep=keep)
    like = {}
    for name, size in plan.sizes.items():
        try:
            dtype = getattr(torch, size.dtype)
            like[name] = torch.empty(size.shape, dtype=dtype, device="meta")
        except (AttributeError, TypeError, RuntimeError):
            fact = f"{size.dtype} of {size.shape}"
            raise InputError(f"the plan's input `{name}` is impossible: {fact}") from None
    return trace_model(model, live=plan.inputs, fixed=plan.fixed, keep=keep, like=like)


def run_passes(
    graph: fx.Graph, model: nn.Module, plan: Plan, phase: Phase, training: bool = True
) -> Iterator[tuple[str, fx.Graph]]:
    """Run the passes and yield (name of the pass, verified graph) after each."""
    context = Context(
        model,
        plan,
        phase,
        training,
        pruned=frozenset(name for group in plan.groups for name in group.parameters),
        private=frozenset(entry.module for entry in plan.privates),
        twins=frozenset(twin_names(plan)),
        redraws=frozenset(path.name for path in plan.paths if path.random == "shared"),
        # In evaluation every path sees the whole batch.
        thin={p.name: (p.batch, p.size) for p in plan.paths if training and p.cost < 1},
    )
    for one in passes_of(plan):
        graph = one.rewrite(graph, context)
        verify_targets(graph, model)
        for check in one.checks:
            check(graph, context)
        yield one.name, graph


def _every_path(plan: Plan, phase: Phase) -> Phase:
    """The phase with every path, for evaluation."""
    return phase.model_copy(update={"paths": tuple(path.name for path in plan.paths)})


def add_masks_and_twins(model: nn.Module, plan: Plan) -> None:
    """Register the twins, scores, masks (all true) and other state that the graphs will name."""

    add_twins(model, plan)
    add_scores(model, plan)
    add_rule_state(model, plan)
    for group in plan.groups:
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            weight = model.get_parameter(parameter)
            mask = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
            model.get_submodule(owner).register_buffer(f"{name}_mask", mask)
    frozen = frozen_names(plan.train.groups)
    for name, learning in model.named_parameters() if frozen else ():
        if plan.original_name(name) in frozen:
            learning.requires_grad_(False)


def _last(steps: Iterator[tuple[str, fx.Graph]]) -> fx.Graph:
    *_, (_, graph) = steps
    return graph
