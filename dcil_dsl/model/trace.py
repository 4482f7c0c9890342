"""A model to fx graphs: one for training, one for evaluation, one for both where they agree.

In:   any nn.Module that trains.
Out:  Traced: a copy of the model, its graphs, its layers in execution order, what stayed whole.
Not:  the model given is not changed; nothing is rewritten here.

fx bakes `self.training` into calls such as F.dropout(x, p, self.training), so a graph
traced in one mode is wrong in the other. The model is traced in both. A module whose forward a
graph cannot hold is one call of the graph (tracer.py), the whole model if need be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.apply import apply_opaque, has_hooks
from dcil_dsl.masking.path_state import Attributes
from dcil_dsl.model.aliasing import written_storages
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.guards import EXAMPLES
from dcil_dsl.model.holders import HOOKS, left_behind
from dcil_dsl.model.inputs import Arguments, Inputs, arguments_of, resized
from dcil_dsl.model.layers import Layer, list_layers, with_macs
from dcil_dsl.model.side_effects import CONSTANT, changed_attribute
from dcil_dsl.model.tracer import Tracer, first_line

WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
WHOLE = "_whole_model"  # the attribute of a model by which a graph calls the model itself


class TraceError(Exception):
    """The model cannot be traced. `module` is the path of the module where it stopped."""

    def __init__(self, module: str, type: str, reason: str):
        self.module, self.type, self.reason = module, type, reason
        where = f"`{module}` ({type})" if module else f"the forward of {type}"
        super().__init__(f"{where} cannot be traced: {reason}")


@dataclass(frozen=True)
class Traced:
    """A model as graphs.

    model      a deep copy of the model given, which the graphs' targets name into
    train      the graph of forward in training mode
    eval       the graph in evaluation mode; the same object where the two agree
    layers     in the order of first use
    arguments  which arguments of forward are inputs of the graphs
    whole      the paths of the modules that are one call each, with the reason; "" is the model
    like       what the tensors among the inputs were like in the example, as meta tensors
    """

    model: nn.Module
    train: fx.Graph
    eval: fx.Graph
    layers: tuple[Layer, ...]
    arguments: Arguments
    opaque: dict[str, str] = field(default_factory=dict)
    like: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def graph(self, training: bool) -> fx.Graph:
        return self.train if training else self.eval


def trace_model(
    model: nn.Module,
    example_inputs=None,
    *,
    live: tuple[str, ...] | None = None,
    fixed: Mapping[str, object] | None = None,
    keep: Mapping[str, str] | None = None,
    like: Mapping[str, Tensor] | None = None,
) -> Traced:
    """Trace a model; with example inputs (a batch of at least one), also count its costs.

    example_inputs  a tuple of arguments, a dict of keyword arguments, or Inputs. What they give is
                    an input of the graph; all other arguments are held at their defaults.
    live            the names of the inputs of the graph, where there are no example inputs;
                    None: the arguments that have no default
    fixed           arguments that are no inputs, with the values that the graph has for them
    keep            paths of modules to keep whole without trying, with the reason
    like            tensors of the sizes and types of the inputs by name, on any device, where there
                    are no example inputs: what a forward decides by sizes is part of the graph

    Raises TraceError for what cannot be copied or rewritten, with the module; InputError where
    the example inputs are an empty batch.
    """
    example = None if example_inputs is None else Inputs.of(example_inputs)
    if example is not None and example.batch_size() == 0:
        raise InputError("the example inputs are an empty batch", help="one example is enough")
    model = _copy(model)
    arguments = arguments_of(model, example, live, fixed)
    flags = {name: module.training for name, module in model.named_modules()}
    like = _named(arguments, example) if example is not None else dict(like or {})
    shown = resized(Inputs((), like), EXAMPLES).kwargs if like else None
    model.train()
    train, kept = _trace(model, arguments, keep or {}, shown)
    model.eval()
    eval, kept_too = _trace(model, arguments, keep or {}, shown)
    opaque = {**kept_too, **kept}
    if "" in opaque:  # one way of calling for both modes
        opaque = {"": opaque[""]}
        arguments = replace(arguments, live=None)
        train = eval = _call_the_whole(model)
    for name, module in model.named_modules():
        module.training = flags.get(name, model.training)
    if _same(train, eval):
        eval = train
    layers = list_layers(model, train)
    if example is not None:
        layers = with_macs(layers, model, example)
    return Traced(model, train, eval, layers, arguments, opaque, like)


def trace_opaque(model: nn.Module, reason: str) -> Traced:
    """The model itself, not a copy, as one opaque call. A Dual of it shares its weights with it."""
    graph = _call_the_whole(model)
    arguments = Arguments((), None)
    return Traced(model, graph, graph, list_layers(model, graph), arguments, {"": reason})


def _named(arguments: Arguments, example: Inputs) -> dict[str, Tensor]:
    """What the graph's inputs are like; nothing if they are more than tensors, or sparse."""
    if arguments.live is None:
        return {}
    given = dict(zip(arguments.live, arguments.bind(example.args, example.kwargs)))
    if not all(isinstance(v, Tensor) and v.layout == torch.strided for v in given.values()):
        return {}
    return {name: value.to("meta") for name, value in given.items()}


def constants(model: nn.Module) -> list[str]:
    """The names of the buffers that tracing has added to a model."""
    return [name for name in model._buffers if name.startswith(CONSTANT)]


def _copy(model: nn.Module) -> nn.Module:
    lazy = nn.parameter.UninitializedTensorMixin
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in WRAPPERS:
            name = f"model.{path}" if path else "model"
            reason = f"it is wrapped; give the module inside, `{name}.{WRAPPERS[kind]}`"
            raise TraceError(path, kind, reason)
        if isinstance(module, torch.jit.ScriptModule):
            reason = "it is compiled by torch.jit; give the module it was made from"
            raise TraceError(path, kind, reason)
        own = {**module._parameters, **module._buffers}
        if any(isinstance(tensor, lazy) for tensor in own.values()):
            reason = "it is lazy and has no weights yet; call the model once before"
            raise TraceError(path, kind, reason)
    _refuse_what_a_copy_loses(model)
    try:
        return copy_module(model)
    except Exception as problem:  # any attribute of a model may refuse to be copied
        reason = f"it cannot be copied: {first_line(problem)}"
        raise TraceError("", type(model).__name__, reason) from problem


def _refuse_what_a_copy_loses(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            path, _, own = name.rpartition(".")
            reason = f"its weight `{own}` has a hook on its gradient, which a copy does not have"
            raise TraceError(path, type(model.get_submodule(path)).__name__, reason)
    for path, attribute, held in left_behind(model):
        holder = "a hook of it" if attribute in HOOKS else f"its `{attribute}`"
        reason = (
            f"{holder} holds {held if held == 'the model' else f'`{held}`'}, and in a copy of the "
            "model it would go on using the one that was copied; a bound method is copied with it"
        )
        raise TraceError(path, type(model.get_submodule(path)).__name__, reason)


def _trace(
    model: nn.Module,
    arguments: Arguments,
    keep: Mapping[str, str],
    example: dict[str, Tensor] | None,
) -> tuple[fx.Graph | None, dict[str, str]]:
    """The graph in the model's mode, and what stayed whole; None where that is the model."""
    if "" in keep:
        return None, {"": keep[""]}
    if arguments.live is None:
        return None, {"": "which of its arguments are inputs is known at a call alone"}
    if has_hooks(model):
        return None, {"": "it has hooks, which a graph of its forward would leave out"}
    before = {path: Attributes(module) for path, module in model.named_modules()}
    tracer = Tracer(model, arguments, keep, example)
    try:
        graph = tracer.trace_model()
        for path, attributes in before.items():
            name = changed_attribute(attributes)
            if name is not None:
                place = f"{path}.{name}" if path else name
                raise RuntimeError(f"its forward changes `{place}`, which a graph would hold still")
    except Exception as problem:  # whatever a forward raises under tracing is the reason
        graph, tracer.opaque = None, {"": first_line(problem)}
    constants = {name: v for name, v in vars(model).items() if name.startswith(CONSTANT)}
    for attributes in before.values():
        attributes.restore()
    if graph is not None:
        _keep_constants(model, graph, constants)
    return graph, tracer.opaque


def _call_the_whole(model: nn.Module) -> fx.Graph:
    """A graph that is one call of the model, with whatever it is given."""
    vars(model)[WHOLE] = model  # not a submodule
    graph = fx.Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    owner = graph.create_node("get_attr", WHOLE)
    called = graph.call_function(apply_opaque, (owner, {}, (), args, kwargs))
    called.meta["opaque"] = ""
    graph.output(called)
    return graph


def _keep_constants(model: nn.Module, graph: fx.Graph, constants: dict[str, object]) -> None:
    """Tensors that the forward makes become buffers, which move to a device with the model.

    One that is written to is made anew at each call, so the graph writes to a copy.
    """
    for name, value in constants.items():
        model.register_buffer(name, value.detach(), persistent=False)
    for storage in written_storages(graph, model):
        for node in storage.members:
            if node.op != "get_attr":
                continue
            owner, _, name = node.target.rpartition(".")
            module = model.get_submodule(owner)
            if isinstance(getattr(module, name), nn.Parameter):
                if any(writer.meta.get("opaque") is None for writer in storage.writers):
                    reason = f"its forward changes the weight `{name}` in place"
                    raise TraceError(owner, type(module).__name__, reason)
            elif node.target.startswith(CONSTANT):
                readers = list(node.users)
                with graph.inserting_after(node):
                    fresh = graph.call_method("clone", (node,))
                for reader in readers:
                    reader.replace_input_with(node, fresh)


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    def rows(graph):
        return [
            (node.op, node.name, str(node.target), str(node.args), str(node.kwargs))
            for node in graph.nodes
        ]

    return rows(one) == rows(other)
