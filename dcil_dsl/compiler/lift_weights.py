"""Lift every shared weight into the graph: a node that later passes can replace by a view.

In:   the traced graph, in which modules have their weights inside.
Out:  a graph in which each shared module gets its weights, get_attr nodes, as arguments.
Not:  no masks; the graph computes the same values. Private modules stay calls, because each path
      gets its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from dcil_dsl.compiler.privatize import is_within
from dcil_dsl.model.calls import apply_layer, apply_opaque


def lift_weights(
    graph: fx.Graph, model: nn.Module, private: frozenset[str], twins: frozenset[str]
) -> fx.Graph:
    """Pass each shared module its weights as arguments.

        conv1 = self.conv1(x)     ==>     conv1_weight = self.conv1.weight
                                          conv1 = apply_layer(self.conv1, {weight: ...}, x)

    A weight that is used twice, or by two modules, is one node: a view of it reaches every user.
    An opaque module with private ones inside also gets their weights and buffers, and the names of
    twins that it must not see:

        block = self.block(x)   ==>   block_norm_weight = self.block.norm.weight    ...
                                      apply_opaque(self.block, {...}, ("norm__dense",), (x,), {})

    private, twins  the full names of the private modules and of their twins
    """
    exposed = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    nodes: dict[object, fx.Node] = {}
    inside, hidden = _NamesWithin(private), _NamesWithin(twins)
    own = {id(model.get_submodule(name)): name for name in private}

    def read(target: str, key: object) -> fx.Node:
        if key not in nodes:
            nodes[key] = exposed.create_node("get_attr", target, name=target.replace(".", "_"))
        return nodes[key]

    def handed(path: str) -> dict[str, fx.Node]:
        """The tensors that a module gets, by their names in it."""
        return {
            name: read(target, target if is_private else id(tensor))
            for name, target, tensor, is_private in _tensors(model, path, own, twins)
        }

    for node in graph.nodes:
        if node.op == "get_attr":
            value = _attribute(model, node.target)
            if isinstance(value, nn.Parameter):
                is_private = is_within(node.target, private)
                env[node] = read(node.target, node.target if is_private else id(value))
                continue
        opaque = node.meta.get("opaque")
        path = node.target if node.op == "call_module" else opaque
        if path is None or (node.op == "call_module" and path in private):
            env[node] = exposed.node_copy(node, env.__getitem__)
            continue
        tensors = handed(path)
        module = model.get_submodule(path)
        # A module with running statistics has a state, and an opaque one may have any.
        stateful = opaque is not None or any(True for _ in module.buffers())
        if not tensors and opaque is None:
            env[node] = exposed.node_copy(node, env.__getitem__)
            env[node].meta["stateful"] = stateful
            continue
        args = fx.map_arg(node.args, env.__getitem__)
        kwargs = dict(fx.map_arg(node.kwargs, env.__getitem__))
        if node.op == "call_function":  # the whole model, with any arguments
            owner = exposed.node_copy(node.args[0])
            args, kwargs = args[3:], {}
        else:
            owner = exposed.create_node("get_attr", node.target, name=f"{node.name}_layer")
        if opaque is None and not inside.within(path):
            call = exposed.create_node(
                "call_function", apply_layer, (owner, tensors, *args), kwargs, name=node.name
            )
        else:
            given = args if node.op == "call_function" else (args, kwargs)
            call = exposed.create_node(
                "call_function",
                apply_opaque,
                (owner, tensors, hidden.within(path), *given),
                name=node.name,
            )
            call.meta["opaque"] = path
        call.meta["stateful"] = stateful
        call.meta["layer"] = path
        env[node] = call
    return exposed


class _NamesWithin:
    """Full names of modules, sorted to find those within another module."""

    def __init__(self, names: Iterable[str]):
        self.sorted = sorted(names)

    def within(self, path: str) -> tuple[str, ...]:
        """Those within a module, by their names in it."""
        if not path:
            return tuple(self.sorted)
        start = bisect.bisect_left(self.sorted, f"{path}.")
        stop = bisect.bisect_left(self.sorted, f"{path}/")  # the next character after the dot
        return tuple(name[len(path) + 1 :] for name in self.sorted[start:stop])


def _tensors(
    model: nn.Module, path: str, own: dict[int, str], twins: frozenset[str]
) -> Iterator[tuple[str, str, torch.Tensor, bool]]:
    """(name in the module, full name, tensor, whether a private module has it) of each tensor.

    These are all parameters, and the buffers of private modules. A module with two names is listed
    under one of them.
    """
    seen: set[int] = set()
    prefix = f"{path}." if path else ""
    waiting = [(model.get_submodule(path), "", prefix, False)]
    while waiting:
        module, inner, full, is_private = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if id(module) in own:
            full, is_private = f"{own[id(module)]}.", True
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield inner + name, full + name, parameter, is_private
        for name, buffer in module._buffers.items():
            if is_private and buffer is not None:
                yield inner + name, full + name, buffer, True
        for name, child in reversed(module._modules.items()):
            if child is not None and full + name not in twins:
                waiting.append((child, f"{inner}{name}.", f"{full}{name}.", is_private))


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)
