"""Give each path its view of the shared weights, and each weight its share of the gradients.

In:   an unrolled graph whose paths all read the raw weights.
Out:  every edge from a shared weight, or from a value computed from shared weights, into a
      path passes through a view: split_weight for a pruned weight, share_gradient for others.
      What a path returns is such an edge, too.
Not:  private modules belong to one path and learn from it alone.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from dcil_dsl.compiler.scores import UNSCALE
from dcil_dsl.masking.split import share_gradient, split_weight
from dcil_dsl.masking.views import read_stored
from dcil_dsl.model.topology import nodes_in, reached_from
from dcil_dsl.plan.plan import Group, Phase, Plan
from dcil_dsl.words.record import token


def route_gradients(
    graph: fx.Graph, model: nn.Module, plan: Plan, phase: Phase, training: bool = True
) -> fx.Graph:
    """Put the views in, in place.

        w -> conv_sparse             w, mask -> split_weight -> w_sparse -> conv_sparse
          -> conv_dense      ==>                             -> w_dense  -> conv_dense
        stem -> conv_dense           stem -> share_gradient(0.0) -> conv_dense

    The layers before the first weight that differs are computed once. All their weights are
    shared and none is pruned, so cutting a path's share where it leaves them is the same as
    cutting it at each of their weights: the gradient is linear. What flows on to the model's
    input is shared in the same proportion.

    In the graph for training a view whose gradient scores the weight also gets the score,
    w_score, to add it to; what is differentiated in evaluation moves no score.
    """
    pruned = {name: group for group in plan.groups for name in group.parameters}
    views = {path.name: path.view for path in plan.paths}
    shares = dict(zip((path.name for path in plan.paths), phase.shares, strict=True))
    weights = [node for node in graph.nodes if _is_parameter(node, model)]
    learning = reached_from(graph, weights)
    # By the node that reads, or by the path that returns.
    seen_by: dict[fx.Node | str, dict[fx.Node, fx.Node]] = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
    output = next(reversed(order))
    returned = {path: set(nodes_in(structure)) for path, structure in output.args[0].items()}

    for node in list(graph.nodes):
        if node.meta.get("path") is not None or node not in learning or node is output:
            continue
        readers = {path: [] for path in phase.paths}
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
            seen = _shared(graph, node, readers, shares)
        for path, users in readers.items():
            for user in users:
                reader = path if user is output else user
                seen_by.setdefault(reader, {})[node] = seen[path]
    results = dict(output.args[0])
    for path, structure in results.items():
        views = seen_by.pop(path, {})
        results[path] = fx.map_arg(structure, lambda n: views.get(n, n))
    output.args = (results,)
    for user, views in seen_by.items():  # all at once: a module that stays opaque reads thousands
        user.args = fx.map_arg(user.args, lambda n: views.get(n, n))
        user.kwargs = fx.map_arg(user.kwargs, lambda n: views.get(n, n))
    return graph


def _split(graph, node, paths, views, shares, group: Group, training: bool) -> dict[str, fx.Node]:
    """One split_weight, and one node for each path's view."""
    last = node

    def beside(kind: str, target: str | None = None) -> fx.Node:
        nonlocal last
        with graph.inserting_after(last):
            name = f"{node.name}_{kind}"
            last = graph.create_node("get_attr", target or f"{node.target}_{kind}", name=name)
        return last

    mask = beside("mask")
    more, score = {}, group.kept_score
    if training and score is not None and score.path in paths:
        gain = 1.0 if score.average is None else 1.0 - score.average
        tensors = (beside("score"), beside("unscale", UNSCALE))
        more["scoring"] = (*tensors, score.token, paths.index(score.path), gain)
    if any(views[path].soft for path in paths):
        more["soft"] = (beside("threshold"), beside("scale"))
    if group.reserve:
        more["reserve"] = (beside("reserve"), tuple(shares[path].reserve for path in paths))
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


def _shared(graph, node, readers, shares) -> dict[str, fx.Node]:
    """One share_gradient for each path whose share is not the whole, in front of its first reader:
    behind all that changes the value in place.
    """
    seen = {}
    for path, users in readers.items():
        share = shares[path].rest
        if share == 1:
            seen[path] = node
            continue
        with graph.inserting_before(users[0]):
            name = f"{node.name}_{path}"
            seen[path] = graph.create_node(
                "call_function", share_gradient, (node, share), name=name
            )
        seen[path].meta["path"] = path
    return seen


def _is_parameter(node: fx.Node, model: nn.Module) -> bool:
    if node.op != "get_attr":
        return False
    owner, _, name = node.target.rpartition(".")
    return isinstance(getattr(model.get_submodule(owner), name, None), nn.Parameter)
