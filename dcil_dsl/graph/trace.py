"""A model to fx graphs: one for training, one for evaluation, one for both where they agree.

In:   any nn.Module whose forward torch.fx can trace.
Out:  Traced: a copy of the model, its graphs, its layers in execution order.
Not:  the model given is not changed; nothing is rewritten here.

fx bakes `self.training` into calls such as F.dropout(x, p, self.training), so a graph
traced in one mode is wrong in the other. The model is traced in both. What else a forward does
that a graph cannot keep (counting its calls, drawing a random number in Python, torch.no_grad)
is refused rather than frozen in silence.
"""

from __future__ import annotations

import copy
import inspect
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from dcil_dsl.graph.layers import Layer, list_layers, with_macs
from dcil_dsl.graph.writes import written_storages

WRAPPERS = {
    "DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod",
}  # fmt: skip
CONSTANT = "_tensor_constant"  # fx's name for a tensor that the forward makes anew at each call


class TraceError(Exception):
    """The model cannot be traced. `module` is the path of the module where it stopped."""

    def __init__(self, module: str, type: str, reason: str):
        self.module, self.type, self.reason = module, type, reason
        where = f"`{module}` ({type})" if module else f"the forward of {type}"
        super().__init__(f"{where} cannot be traced: {reason}")


@dataclass(frozen=True)
class Traced:
    """A model as graphs.

    model    a deep copy of the model given, which the graphs' targets name into
    train    the graph of forward in training mode
    eval     the graph in evaluation mode; the same object where the two agree
    layers   in the order of first use
    """

    model: nn.Module
    train: fx.Graph
    eval: fx.Graph
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def graph(self, training: bool) -> fx.Graph:
        return self.train if training else self.eval


def trace_model(model: nn.Module, example_inputs: tuple | None = None) -> Traced:
    """Trace a model; with example inputs (a batch of at least one), also count its costs.

    Arguments of forward that have a default are held at it. Raises TraceError with the
    module where tracing stopped.
    """
    model = _copy(model)
    flags = {name: module.training for name, module in model.named_modules()}
    train = _trace(model.train())
    eval = _trace(model.eval())
    for name, module in model.named_modules():
        module.training = flags.get(name, model.training)
    if _same(train, eval):
        eval = train
    layers = list_layers(model, train)
    if example_inputs is not None:
        layers = with_macs(layers, model, example_inputs)
    return Traced(model, train, eval, layers)


def constants(model: nn.Module) -> list[str]:
    """The names of the buffers that tracing has added to a model."""
    return [name for name in model._buffers if name.startswith(CONSTANT)]


class _Proxy(fx.Proxy):
    """A proxy that takes `x += y` at its word; fx's own makes a new tensor, `x + y`, of it."""


def _in_place(function):
    def write(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split():
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """fx's tracer, which remembers where it is, to say where it failed."""

    # A buffer that the forward computes with (x - self.mean[:, None]) stays a buffer of the graph.
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__(autowrap_functions=())
        self.inside: list[tuple[str, str]] = []
        self.learns = torch.is_grad_enabled()

    def proxy(self, node):
        return _Proxy(node, self)

    def call_module(self, m, forward, args, kwargs):
        self.inside.append((self.path_of_module(m), type(m).__name__))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not in a finally: after a failure it says where
        return result

    def create_node(self, kind, *args, **kwargs):
        if kind.startswith("call") and torch.is_grad_enabled() != self.learns:
            raise RuntimeError(
                "it computes under torch.no_grad(), which a graph does not keep; x.detach(), or "
                "requires_grad_(False) on the weights, says the same"
            )
        return super().create_node(kind, *args, **kwargs)


def _copy(model: nn.Module) -> nn.Module:
    kind = type(model).__name__
    if kind in WRAPPERS:
        reason = f"it is wrapped; give the model inside, `model.{WRAPPERS[kind]}`"
        raise TraceError("", kind, reason)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("", kind, "it is compiled by torch.jit; give the model it was made from")
    lazy = nn.parameter.UninitializedTensorMixin
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, lazy):
            owner = name.rpartition(".")[0]
            reason = "it is lazy and has no weights yet; call the model once before"
            raise TraceError(owner, type(model.get_submodule(owner)).__name__, reason)
    if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks:
        raise TraceError("", kind, "the whole model has hooks, which a graph would leave out")
    try:
        return copy.deepcopy(model)
    except Exception as problem:  # any attribute of a model may refuse to be copied
        raise TraceError("", kind, f"it cannot be copied: {_first_line(problem)}") from problem


def _trace(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        with _only_traced(model):
            graph = tracer.trace(model, concrete_args=defaults or None)
    except TraceError:
        raise
    except Exception as problem:  # whatever a forward raises under tracing is the reason
        module, kind = tracer.inside[-1] if tracer.inside else ("", type(model).__name__)
        raise TraceError(module, kind, _first_line(problem)) from problem
    _keep_constants(model, graph)
    return graph


@contextmanager
def _only_traced(model: nn.Module) -> Iterator[None]:
    """Refuse a forward that does, while it is traced, what it would do anew at each call."""
    states = random.getstate(), torch.get_rng_state()
    before, tensors = _counters(model), _tensors(model)
    yield
    now = _tensors(model)
    for path, name in [place for place in tensors if now.get(place) is not tensors[place]]:
        reason = f"its forward replaces `self.{name}`; changed in place it would stay in the graph"
        raise TraceError(path, type(model.get_submodule(path)).__name__, reason)
    for module in model.modules():  # what the forward has put aside is a name without a value
        for name in [name for name, value in vars(module).items() if isinstance(value, fx.Proxy)]:
            delattr(module, name)
    if random.getstate() != states[0] or not torch.equal(torch.get_rng_state(), states[1]):
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        reason = "its forward draws random numbers of no tensor that it was given"
        raise TraceError("", type(model).__name__, reason)
    after = _counters(model)
    for path, name in after:
        if after[path, name] != before.get((path, name)):
            module = model.get_submodule(path)
            reason = f"its forward changes `self.{name}`, which a graph would hold still"
            raise TraceError(path, type(module).__name__, reason)


def _tensors(model: nn.Module) -> dict[tuple[str, str], object]:
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
    }


def _counters(model: nn.Module) -> dict[tuple[str, str], float]:
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def _keep_constants(model: nn.Module, graph: fx.Graph) -> None:
    """Tensors that the forward makes become buffers, which move to a device with the model.

    One that is written to is made anew at each call, so the graph writes to a copy.
    """
    for name in [name for name in vars(model) if name.startswith(CONSTANT)]:
        value = getattr(model, name)
        delattr(model, name)
        model.register_buffer(name, value.detach(), persistent=False)
    for storage in written_storages(graph, model):
        for node in storage.members:
            if node.op != "get_attr":
                continue
            owner, _, name = node.target.rpartition(".")
            module = model.get_submodule(owner)
            if isinstance(getattr(module, name), nn.Parameter):
                reason = f"its forward changes the weight `{name}` in place"
                raise TraceError(owner, type(module).__name__, reason)
            if node.target.startswith(CONSTANT):
                readers = list(node.users)
                with graph.inserting_after(node):
                    fresh = graph.call_method("clone", (node,))
                for reader in readers:
                    reader.replace_input_with(node, fresh)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0] or type(problem).__name__


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    def rows(graph):
        return [
            (node.op, node.name, str(node.target), str(node.args), str(node.kwargs))
            for node in graph.nodes
        ]

    return rows(one) == rows(other)
