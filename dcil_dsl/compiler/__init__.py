"""Plan x Traced -> Dual: the passes (passes.py), run in their order.

In:   a Plan and the traced model it was resolved for.
Out:  a Dual: a GraphModule that maps x to {path: output}.
Not:  no training; masks start with everything kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.dynamics import add_dynamics
from dcil_dsl.compiler.passes import PASSES, Context, passes_of
from dcil_dsl.compiler.privatize import add_twins, twin_names
from dcil_dsl.compiler.scores import add_scores
from dcil_dsl.compiler.verify import verify_targets
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.trace import Traced, trace_model
from dcil_dsl.plan.plan import Phase, Plan

__all__ = ["PASSES", "Dual", "add_masks_and_twins", "compile_plan", "run_passes"]


def compile_plan(plan: Plan, model: nn.Module | Traced, example_inputs: object = None) -> Dual:
    """The dual graph of a model. The model given is not changed.

    model           an nn.Module, or its Traced, which the Dual then takes over
    example_inputs  which inputs the graph takes, where the plan does not say it

    Raises TraceError where the model cannot be traced, KeyError where it is not the model
    that the plan was resolved for, InputError where a package whose words it uses is not installed
    or its inputs are no tensors that there could be.
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
    add_masks_and_twins(model, plan)
    graphs = {}
    for training in (True, False):
        for index, phase in enumerate(plan.phases):
            if not training:
                phase = _every_path(plan, phase)
            graph = traced.graph(training)
            passes = run_passes(graph, model, plan, phase, training)
            graphs[training, index] = _last(passes)
    return Dual(model, graphs, plan, traced.arguments)


def trace_for(plan: Plan, model: nn.Module, example_inputs=None) -> Traced:
    """The model traced as it was when the plan was made: the same inputs, the same parts whole."""
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
            raise InputError(f"no tensor is what the plan's input `{name}` is: {fact}") from None
    return trace_model(model, live=plan.inputs, fixed=plan.fixed, keep=keep, like=like)


def run_passes(
    graph: fx.Graph, model: nn.Module, plan: Plan, phase: Phase, training: bool = True
) -> Iterator[tuple[str, fx.Graph]]:
    """The graph after each pass, verified, under the pass's name."""
    context = Context(
        model,
        plan,
        phase,
        training,
        pruned=frozenset(name for group in plan.groups for name in group.parameters),
        private=frozenset(entry.module for entry in plan.privates),
        twins=frozenset(twin_names(plan)),
        redraws=frozenset(path.name for path in plan.paths if path.random == "shared"),
        # In evaluation every path sees all there is.
        thin={p.name: (p.batch, p.size) for p in plan.paths if training and p.cost < 1},
    )
    for one in passes_of(plan):
        graph = one.rewrite(graph, context)
        verify_targets(graph, model)
        for check in one.checks:
            check(graph, context)
        yield one.name, graph


def _every_path(plan: Plan, phase: Phase) -> Phase:
    """In evaluation every path is computed, whichever the phase trains."""
    return phase.model_copy(update={"paths": tuple(path.name for path in plan.paths)})


def add_masks_and_twins(model: nn.Module, plan: Plan) -> None:
    """Register in the model, in place, what the graphs will name: twins; scores; masks, all true,
    and what follows from them.
    """
    add_twins(model, plan)
    add_scores(model, plan)
    add_dynamics(model, plan)
    for group in plan.groups:
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            weight = model.get_parameter(parameter)
            mask = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
            model.get_submodule(owner).register_buffer(f"{name}_mask", mask)


def _last(steps: Iterator[tuple[str, fx.Graph]]) -> fx.Graph:
    *_, (_, graph) = steps
    return graph
