"""Trace a model to fx graphs: one for training and one for evaluation.

In:   any nn.Module that trains.
Out:  Traced: a copy of the model, its graphs, its layers in execution order, its opaque modules.
Not:  no changes of the model; no rewriting of the graphs (compiler/).

fx bakes `self.training` into calls such as F.dropout(x, p, self.training), so a graph
traced in one mode is wrong in the other. The model is traced in both. A module with a forward that
a graph cannot express is opaque, one call of the graph (tracer.py); so may be the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.calls import apply_opaque, global_hook, has_hooks
from dcil_dsl.model.collector import collector_paused
from dcil_dsl.model.copies import HOOKS, copy_module, left_behind
from dcil_dsl.model.dataflow import written_storages
from dcil_dsl.model.guards import Decisions
from dcil_dsl.model.inputs import Arguments, Inputs, arguments_of, as_fakes
from dcil_dsl.model.layers import Layer, list_layers, with_macs
from dcil_dsl.model.side_effects import CONSTANT, Attributes, Randomness
from dcil_dsl.model.tracer import Tracer, first_line

WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
WHOLE = "_whole_model"  # the attribute of a model through which a graph calls the model itself


class TraceError(Exception):
    """The model cannot be traced. `module` is the path of the module where it stopped."""

    def __init__(self, module: str, type: str, reason: str):
        self.module, self.type, self.reason = module, type, reason
        where = f"`{module}` ({type})" if module else f"the forward of {type}"
        super().__init__(f"{where} cannot be traced: {reason}")


@dataclass(frozen=True)
class Traced:
    """A model as graphs.

    model      a deep copy of the model, to which the targets of the graphs refer
    train      the graph of forward in training mode
    eval       the graph in evaluation mode; the same object if the two are equal
    layers     in the order of first use
    arguments  which arguments of forward are inputs of the graphs
    opaque     the paths of the opaque modules, with the reasons; "" is the model
    like       meta tensors with the sizes and types of the example inputs
    memos      the paths of the modules that keep a memo for later calls, which the graphs compute
               in each call; and whether the memo depends on weights
    """

    model: nn.Module
    train: fx.Graph
    eval: fx.Graph
    layers: tuple[Layer, ...]
    arguments: Arguments
    opaque: dict[str, str] = field(default_factory=dict)
    like: dict[str, Tensor] = field(default_factory=dict)
    memos: dict[str, bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def graph(self, training: bool) -> fx.Graph:
        return self.train if training else self.eval


@collector_paused()
def require_module(model: object) -> None:
    """InputError for what is given in the place of a module."""
    if isinstance(model, nn.Module):
        return
    name, kind = getattr(model, "__name__", type(model).__name__), type(model).__name__
    if isinstance(model, type) or callable(model):
        what = "a class" if isinstance(model, type) else "a function"
        raise InputError(
            f"the model is {what}, `{name}`, and must be the torch.nn.Module that it returns",
            help=f"call it first: {name}(...)",
        )
    raise InputError(f"the model is of type {kind}, and must be a torch.nn.Module")


def trace_model(
    model: nn.Module,
    example_inputs: object = None,
    *,
    live: tuple[str, ...] | None = None,
    fixed: Mapping[str, object] | None = None,
    keep: Mapping[str, str] | None = None,
    like: Mapping[str, Tensor] | None = None,
) -> Traced:
    """Trace a model; with example inputs (a batch of at least one), also count its costs.

    example_inputs  a tuple of arguments, a dict of keyword arguments, or Inputs. Their arguments
                    are inputs of the graph; all others are held at their defaults.
    live            without example inputs, the names of the inputs of the graph; None: the
                    arguments without a default
    fixed           arguments that are not inputs, with their values in the graph
    keep            paths of modules to keep opaque without tracing, with the reasons
    like            without example inputs, tensors with the sizes and types of the inputs, by
                    name, on any device: decisions by sizes are part of the graph

    Raises TraceError, with the module, for a model that cannot be copied or rewritten; InputError
    for an empty batch, and for what is not a module.
    """
    require_module(model)
    example = None if example_inputs is None else Inputs.of(example_inputs)
    if example is not None and example.batch_size() == 0:
        raise InputError("the example inputs are an empty batch", help="one example is enough")
    model = _copy(model)
    arguments = arguments_of(model, example, live, fixed)
    flags = {name: module.training for name, module in model.named_modules()}
    like = _named(arguments, example) if example is not None else dict(like or {})
    shown = as_fakes(Inputs((), like)) if like else (None, None)
    model.train()
    memos: dict[str, bool] = {}
    train, kept = _trace(model, arguments, keep or {}, shown, memos)
    model.eval()
    eval, kept_too = _trace(model, arguments, keep or {}, shown, memos)
    opaque = {**kept_too, **kept}
    if "" in opaque:  # the same kind of call in both modes
        opaque = {"": opaque[""]}
        arguments = replace(arguments, live=None)
        train = eval = _call_of_model(model)
    assert train is not None and eval is not None
    for name, module in model.named_modules():
        module.training = flags.get(name, model.training)
    if _same(train, eval):
        eval = train
    layers = list_layers(model, train)
    if example is not None:
        layers = with_macs(layers, model, example)
    return Traced(model, train, eval, layers, arguments, opaque, like, memos)


def trace_opaque(model: nn.Module, reason: str) -> Traced:
    """The model itself, not a copy, as one opaque call. A Dual of it shares its weights with it."""
    graph = _call_of_model(model)
    arguments = Arguments((), None)
    return Traced(model, graph, graph, list_layers(model, graph), arguments, {"": reason})


def _named(arguments: Arguments, example: Inputs) -> dict[str, Tensor]:
    """Meta tensors like the graph's inputs; none if an input is not a dense tensor."""
    if arguments.live is None:
        return {}
    given = dict(zip(arguments.live, arguments.bind(example.args, example.kwargs)))
    if not all(isinstance(v, Tensor) and v.layout == torch.strided for v in given.values()):
        return {}
    return {name: value.to("meta") for name, value in given.items()}


def constants(model: nn.Module) -> list[str]:
    """The names of the buffers that tracing added to a model."""
    return [name for name in model._buffers if name.startswith(CONSTANT)]


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy of the model, or TraceError."""
    lazy: Any = vars(nn.parameter)["UninitializedTensorMixin"]
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
            reason = "it is lazy and has no weights yet; call the model once first"
            raise TraceError(path, kind, reason)
    _refuse_what_a_copy_loses(model)
    try:
        return copy_module(model)
    except Exception as problem:  # any attribute of a model may refuse to be copied
        reason = f"it cannot be copied: {first_line(problem)}"
        raise TraceError("", type(model).__name__, reason) from problem


def _refuse_what_a_copy_loses(model: nn.Module) -> None:
    hook = global_hook()
    if hook is not None:
        reason = (
            f"the hook `{hook}` is registered for all modules, and a graph calls only some of "
            "them; register it on the modules that need it"
        )
        raise TraceError("", type(model).__name__, reason)
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            path, _, own = name.rpartition(".")
            reason = f"its weight `{own}` has a hook on its gradient, which a copy does not have"
            raise TraceError(path, type(model.get_submodule(path)).__name__, reason)
    for path, attribute, held in left_behind(model):
        holder = "a hook of it" if attribute in HOOKS else f"its `{attribute}`"
        reason = (
            f"{holder} holds {held if held == 'the model' else f'`{held}`'}, and in a copy of the "
            "model it would still use the original; use a bound method, which is copied as well"
        )
        raise TraceError(path, type(model.get_submodule(path)).__name__, reason)


def _trace(
    model: nn.Module,
    arguments: Arguments,
    keep: Mapping[str, str],
    shown: tuple[Inputs | None, Inputs | None],
    memos: dict[str, bool],
) -> tuple[fx.Graph | None, dict[str, str]]:
    """The graph in the model's mode, None if the model is opaque; and the opaque modules."""
    if "" in keep:
        return None, {"": keep[""]}
    if arguments.live is None:
        return None, {"": "only a call shows which of its arguments are inputs"}
    if has_hooks(model):
        return None, {"": "it has hooks, which a graph of its forward would omit"}
    before = {path: Attributes(module) for path, module in model.named_modules()}
    randomness = Randomness(model)
    example, other = (None if call is None else call.kwargs for call in shown)
    tracer = Tracer(model, arguments, keep, Decisions(model, example, other))
    try:
        graph = tracer.trace_model()
        for path, attributes in before.items():
            name = tracer.changed(attributes)
            if name is not None:
                place = f"{path}.{name}" if path else name
                raise RuntimeError(f"its forward changes `{place}`, which a graph would hold still")
    except Exception as problem:  # whatever a forward raises under tracing is the reason
        graph, tracer.opaque = None, {"": first_line(problem)}
        tracer.memos = {}
    memos |= {
        path: is_of_weights or memos.get(path, False)
        for path, is_of_weights in tracer.memos.items()
    }
    constants = {name: v for name, v in vars(model).items() if name.startswith(CONSTANT)}
    for attributes in before.values():
        attributes.restore()
    randomness.restore()
    if graph is not None:
        _keep_constants(model, graph, constants)
    return graph, tracer.opaque


def _call_of_model(model: nn.Module) -> fx.Graph:
    """A graph that is one call of the model with any arguments."""
    vars(model)[WHOLE] = model  # not a submodule
    graph = fx.Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")
    owner = graph.create_node("get_attr", WHOLE)
    called = graph.call_function(apply_opaque, (owner, {}, (), args, kwargs))
    called.meta["opaque"] = ""
    graph.output(called)
    return graph


def _keep_constants(model: nn.Module, graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Register tensors that the forward makes as buffers, which move to a device with the model.

    The forward makes a new tensor in each call, so the graph writes to a copy of the buffer.
    """
    for name, value in constants.items():
        model.register_buffer(name, value.detach(), persistent=False)
    for storage in written_storages(graph, model):
        for node in storage.members:
            if node.op != "get_attr":
                continue
            owner, _, name = str(node.target).rpartition(".")
            module = model.get_submodule(owner)
            if isinstance(getattr(module, name), nn.Parameter):
                if any(writer.meta.get("opaque") is None for writer in storage.writers):
                    reason = f"its forward changes the weight `{name}` in place"
                    raise TraceError(owner, type(module).__name__, reason)
            elif str(node.target).startswith(CONSTANT):
                readers = list(node.users)
                with graph.inserting_after(node):
                    fresh = graph.call_method("clone", (node,))
                for reader in readers:
                    reader.replace_input_with(node, fresh)


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    def rows(graph: fx.Graph) -> list[tuple[str, ...]]:
        return [
            (node.op, node.name, str(node.target), str(node.args), str(node.kwargs))
            for node in graph.nodes
        ]

    return rows(one) == rows(other)


def text_of(traced: Traced) -> str:
    """The training graph as code, then each module that it calls with its settings.

    A resumed run compares this text with that of its start.
    """
    names = dict.fromkeys(n.target for n in traced.train.nodes if n.op == "call_module")
    modules = [f"{name}: {traced.model.get_submodule(name)!r}" for name in names]
    text = "\n".join([traced.train.python_code("self").src.strip(), *modules]) + "\n"
    return comparable(text)


def comparable(text: str) -> str:
    """The text of a model without addresses and without the files of dcil's own functions.

    fx writes dcil_dsl_model_calls_apply_opaque; in runs of earlier versions, the function was in
    another file.
    """
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    text = re.sub(r"\bdcil_dsl_[a-z_]+_(apply_opaque|as_reentrant|guard|make_\w+)\b", r"\1", text)
    return re.sub(r"\bdcil_dsl_[a-z]+_(guards|decisions)_hold\b", "guard", text)
