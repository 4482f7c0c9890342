"""Give each path its view of the shared weights, and each weight its share of the gradients.

In:   an unrolled graph whose paths all read the raw weights.
Out:  a graph in which every edge from a shared weight, or from a value computed from shared
      weights, into a path or its output passes through a view: split_weight for a pruned weight,
      share_gradient for other values.
Not:  no private modules: they belong to one path and learn from it alone.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from dcil_dsl.compiler.weight_state import UNSCALE
from dcil_dsl.masking.split import share_gradient, split_weight
from dcil_dsl.masking.views import read_stored
from dcil_dsl.model.dataflow import nodes_in, reached_from
from dcil_dsl.model.inner_checkpoints import as_reentrant
from dcil_dsl.plan.plan import Group, Phase, Plan, Shares
from dcil_dsl.words.registry import token
from dcil_dsl.words.views import AnyView

# By path, the nodes that read a value; what a path returns is read by the output node.
Readers = dict[str, list[fx.Node]]
# For one reader: what it reads -> the view of it that the reader gets instead.
Seen = dict[fx.Node, fx.Node]


def route_gradients(
    graph: fx.Graph, model: nn.Module, plan: Plan, phase: Phase, training: bool = True
) -> fx.Graph:
    """Insert the views, in place.

        w -> conv_sparse             w, mask -> split_weight -> w_sparse -> conv_sparse
          -> conv_dense      ==>                             -> w_dense  -> conv_dense
        stem -> conv_dense           stem -> share_gradient(0.0) -> conv_dense

    The layers before the first weight that differs are computed once. All their weights are
    shared and none is pruned. The gradient is linear, so scaling a path's gradient where it leaves
    these layers equals scaling it at each of their weights. The gradient of the model's input is
    scaled in the same way.

    In the graph for training, the split of a weight with a score from gradients also gets the
    buffer of the score, w_score. A gradient in evaluation mode changes no score.
    """
    pruned = {name: group for group in plan.groups for name in group.parameters}
    views = {path.name: path.view for path in plan.paths}
    shares = dict(zip((path.name for path in plan.paths), phase.shares, strict=True))
    weights = [node for node in graph.nodes if _is_parameter(node, model)]
    learning = reached_from(graph, weights)
    seen_by: dict[fx.Node, Seen] = {}
    seen_by_output: dict[str, Seen] = {path: {} for path in phase.paths}
    order = {node: place for place, node in enumerate(graph.nodes)}
    output = next(reversed(order))
    watched = _watched(graph)
    results: dict[str, Any] = dict(output.args[0])
    returned = {path: set(nodes_in(structure)) for path, structure in results.items()}

    for node in list(graph.nodes):
        if node.meta.get("path") is not None or node not in learning or node is output:
            continue
        readers: Readers = {path: [] for path in phase.paths}
        for user in sorted(node.users, key=order.__getitem__):
            if user.meta.get("path") in readers:
                readers[user.meta["path"]].append(user)
        for path, nodes in returned.items():
            if node in nodes:
                readers[path].append(output)
        readers = {path: users for path, users in readers.items() if users}
        if not readers:
            continue
        if node.op == "get_attr" and node.target in pruned:
            group = pruned[node.target]
            seen = _split(graph, node, tuple(readers), views, shares, group, training)
        else:
            seen = _shared(graph, node, readers, shares, watched)
        for path, users in readers.items():
            for user in users:
                by_reader = seen_by_output[path] if user is output else seen_by.setdefault(user, {})
                by_reader[node] = seen[path]
    for path, replaced in seen_by_output.items():
        results[path] = fx.map_arg(results[path], lambda n: replaced.get(n, n))
    output.args = (results,)
    for user, replaced in seen_by.items():  # all at once: an opaque module reads thousands
        user.args = fx.map_arg(user.args, lambda n: replaced.get(n, n))
        user.kwargs = fx.map_arg(user.kwargs, lambda n: replaced.get(n, n))
    return graph


def _split(
    graph: fx.Graph,
    node: fx.Node,
    paths: tuple[str, ...],
    views: dict[str, AnyView],
    shares: dict[str, Shares],
    group: Group,
    training: bool,
) -> dict[str, fx.Node]:
    """Insert one split_weight, and one node for each path's view; the views by their paths."""
    last = node

    def buffer(kind: str, target: str | None = None) -> fx.Node:
        nonlocal last
        with graph.inserting_after(last):
            name = f"{node.name}_{kind}"
            last = graph.create_node("get_attr", target or f"{node.target}_{kind}", name=name)
        return last

    mask = buffer("mask")
    more: dict[str, Any] = {}
    score = group.buffered_score
    if training and score is not None and score.path in paths:
        gain = 1.0 if score.average is None else 1.0 - score.average
        tensors = (buffer("score"), buffer("unscale", UNSCALE))
        more["scoring"] = (*tensors, score.token, paths.index(score.path), gain)
    if any(views[path].soft for path in paths):
        more["soft"] = (buffer("threshold"), buffer("scale"))
    if group.reserve:
        more["reserve"] = (buffer("reserve"), tuple(shares[path].reserve for path in paths))
    weight = node
    if group.param is not None:
        with graph.inserting_after(last):
            stored = (node, token(group.param))
            weight = last = graph.create_node(
                "call_function", read_stored, stored, name=f"{node.name}_read"
            )
    with graph.inserting_after(last):
        split = graph.create_node(
            "call_function",
            split_weight,
            (weight, mask),
            {
                "views": tuple(token(views[path]) for path in paths),
                "kept": tuple(shares[path].kept for path in paths),
                "pruned": tuple(shares[path].pruned for path in paths),
                **more,
            },
            name=f"{node.name}_views",
        )
    seen, last = {}, split
    for index, path in enumerate(paths):
        with graph.inserting_after(last):
            name = f"{node.name}_{path}"
            last = graph.create_node("call_function", operator.getitem, (split, index), name=name)
        last.meta["path"] = path
        seen[path] = last
    return seen


def _shared(
    graph: fx.Graph,
    node: fx.Node,
    readers: Readers,
    shares: dict[str, Shares],
    watched: set[fx.Node],
) -> dict[str, fx.Node]:
    """Insert one share_gradient for each path whose share is not 1; the values by their paths.

    It comes right before its first reader, after every node that changes the value in place.
    """
    seen = {}
    for path, users in readers.items():
        share = shares[path].rest
        if share == 1:
            seen[path] = node
            continue
        with graph.inserting_before(users[0]):
            name = f"{node.name}_{path}"
            given: tuple[Any, ...] = (node, share)
            if share == 0 and not watched.isdisjoint(users):
                given = (*given, True)
            seen[path] = graph.create_node("call_function", share_gradient, given, name=name)
        seen[path].meta["path"] = path
    return seen


def _watched(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that act on the `requires_grad` of what they are given, and all before them.

    A reentrant checkpoint detaches its output where no input requires a gradient; a forward may
    differentiate; whatever an opaque module does is not known.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        acts = node.target in (as_reentrant, torch.autograd.grad) or "opaque" in node.meta
        if acts or not found.isdisjoint(node.users):
            found.add(node)
    return found


def _is_parameter(node: fx.Node, model: nn.Module) -> bool:
    if node.op != "get_attr" or not isinstance(node.target, str):
        return False
    owner, _, name = node.target.rpartition(".")
    return isinstance(getattr(model.get_submodule(owner), name, None), nn.Parameter)
