"""An exported network as a plain fx module, for engines that take torch modules.

In:   a Program and its stored tensors.
Out:  a GraphModule with dense weights that computes the same through torch alone.
Not:  no kernel of this package runs in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from dcil_dsl.extras.cpu.functions import INTEGERS, decode, function_of
from dcil_dsl.extras.cpu.program import CpuProgram, ProgramLayer
from dcil_dsl.extras.cpu.shapes import infer, place_of
from dcil_dsl.extras.cpu.storage import StoredTensor

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
}


def as_module(
    program: CpuProgram, stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> fx.GraphModule:
    """The network for inputs of these shapes."""
    graph = fx.Graph()
    root = nn.Module()
    nodes: dict[str, Any] = {}
    tensors: dict[str, fx.Node] = {}
    sizes = {k: v for k, v in infer(program, stored, shapes).items() if isinstance(v, int)}
    for given in program.inputs:
        nodes[given.name] = graph.placeholder(given.name)

    def tensor(name: str) -> fx.Node:
        if name not in tensors:
            entry = stored[name]
            dtype = torch.float32 if entry.values.dtype == torch.bfloat16 else None
            target = f"tensor_{len(tensors)}"
            root.register_buffer(target, entry.dense(dtype))
            tensors[name] = graph.get_attr(target)
        return tensors[name]

    for name, key in program.constants.items():
        nodes[name] = tensor(key)
    for index, operation in enumerate(program.operations):
        place = place_of(index, operation)
        if isinstance(operation, ProgramLayer):
            nodes[operation.output] = _layer(graph, operation, nodes, tensor)
        elif operation.function in INTEGERS:
            nodes.update({n: sizes[n] for n in operation.outputs if n is not None})
        else:
            lookup = _Lookup(tensor, stored)
            args = decode(operation.args, nodes, lookup, place)
            kwargs = {
                key: decode(value, nodes, lookup, place) for key, value in operation.kwargs.items()
            }
            function = function_of(operation.function, place)
            made = graph.call_function(function, tuple(args), kwargs)
            if len(operation.outputs) == 1:
                nodes[operation.outputs[0] or ""] = made
                continue
            for number, result in enumerate(operation.outputs):
                if result is not None:
                    nodes[result] = graph.call_function(_item, (made, number))
    graph.output(_structure(program.outputs, nodes))
    return fx.GraphModule(root, graph).eval()


def _item(results: Any, number: int) -> Any:
    return results[number]


class _Lookup(dict[str, Any]):
    """Stored tensors as nodes, made when an argument names them."""

    def __init__(self, make: Any, stored: Mapping[str, StoredTensor]):
        super().__init__()
        self.make, self.stored = make, stored

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __getitem__(self, name: str) -> Any:
        return self.make(name)


def _layer(graph: fx.Graph, layer: ProgramLayer, nodes: Mapping[str, Any], tensor: Any) -> fx.Node:
    bias = None if layer.bias is None else tensor(layer.bias)
    args: tuple[Any, ...] = (nodes[layer.input], tensor(layer.weight), bias)
    if layer.op == "linear":
        made = graph.call_function(functional.linear, args)
    else:
        args += (layer.stride, layer.padding, layer.dilation, layer.groups)
        made = graph.call_function(functional.conv2d, args)
    if layer.add is not None:
        made = graph.call_function(torch.add, (made, nodes[layer.add]))
    if layer.activation is not None:
        made = graph.call_function(ACTIVATIONS[layer.activation], (made,))
    return made


def _structure(structure: Any, nodes: Mapping[str, Any]) -> Any:
    (kind, inner), *_ = structure.items()
    match kind:
        case "value":
            return nodes[inner]
        case "constant":
            return inner
        case "dict":
            return {key: _structure(part, nodes) for key, part in inner.items()}
    parts = [_structure(part, nodes) for part in inner]
    return parts if kind == "list" else tuple(parts)
