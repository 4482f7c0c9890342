"""A model to fx graphs: one for training, one for evaluation, one for both where they agree.

In:   any nn.Module whose forward torch.fx can trace.
Out:  Traced: a copy of the model, its graphs, its layers in execution order.
Not:  the model given is not changed; nothing is rewritten here.

fx bakes `self.training` into calls such as F.dropout(x, p, self.training), so a graph
traced in one mode is wrong in the other. The model is traced in both.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass

from torch import fx, nn

from dcil_dsl.graph.layers import Layer, list_layers, with_macs


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
    model = copy.deepcopy(model)
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


class _Tracer(fx.Tracer):
    """fx's tracer, which remembers where it is, to say where it failed."""

    def __init__(self):
        super().__init__(autowrap_functions=())
        self.inside: list[tuple[str, str]] = []

    def call_module(self, m, forward, args, kwargs):
        self.inside.append((self.path_of_module(m), type(m).__name__))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not in a finally: after a failure it says where
        return result


def _trace(model: nn.Module) -> fx.Graph:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    tracer = _Tracer()
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as problem:  # whatever a forward raises under tracing is the reason
        module, kind = tracer.inside[-1] if tracer.inside else ("", type(model).__name__)
        reason = str(problem).strip().split("\n")[0] or type(problem).__name__
        raise TraceError(module, kind, reason) from problem
    return graph


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    def rows(graph):
        return [
            (node.op, node.name, str(node.target), str(node.args), str(node.kwargs))
            for node in graph.nodes
        ]

    return rows(one) == rows(other)
