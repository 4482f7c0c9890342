"""The dual graph on rows: a gathering before each path's first use of a weight or of its view.

In:   a graph on whole weights.
Out:  the same graph on this process's rows.
Not:  nothing is gathered here (layout.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from dcil_dsl.masking.split import share_gradient, split_weight
from dcil_dsl.masking.views import read_stored
from dcil_dsl.model.calls import apply_layer, apply_opaque

# What autocast computes in its own type; embeddings, norms and sums it leaves as they are.
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d")


def gather_weights(graph: fx.Graph, model: nn.Module, where: Mapping[str, str]) -> fx.Graph:
    """Put a gathering before each path's first use of a weight or of its view.

    where  parameter -> the attribute of the dual graph that holds its Layout
    """
    _expose_private(graph, model)
    layout_of: dict[fx.Node, str] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and str(node.target) in where:
            layout_of[node] = where[str(node.target)]
        elif node.args and isinstance(node.args[0], fx.Node) and node.args[0] in layout_of:
            if _keeps_rows(node):
                layout_of[node] = layout_of[node.args[0]]
    for node, attribute in layout_of.items():
        readers: dict[str | None, list[fx.Node]] = {}
        for user in node.users:
            if user not in layout_of:
                readers.setdefault(user.meta.get("path"), []).append(user)
        for path, users in readers.items():
            with graph.inserting_before(min(users)):
                layout = graph.create_node("get_attr", attribute)
                name = f"{node.name}_whole"
                is_multiplied = all(_multiplies(user, node, model) for user in users)
                given = (layout, node, is_multiplied)
                whole = graph.create_node("call_method", "gather", given, name=name)
            whole.meta["path"] = path
            for user in users:
                user.replace_input_with(node, whole)
    return graph


def _multiplies(user: fx.Node, weight: fx.Node, model: nn.Module) -> bool:
    """Whether the reader of a weight is one that autocast computes in its own type."""
    if user.target not in (apply_layer, apply_opaque):
        return getattr(user.target, "__name__", user.target) in PRODUCTS
    given: tuple[Any, ...] = user.args
    owner, tensors = model.get_submodule(given[0].target), given[1]
    names = [name for name, tensor in tensors.items() if tensor is weight]
    owners = [owner.get_submodule(name.rpartition(".")[0]) for name in names]
    return bool(owners) and all(isinstance(module, LAYERS) for module in owners)


def _keeps_rows(node: fx.Node) -> bool:
    """Whether the node makes, of the rows of a weight, the rows of its views."""
    if node.target in (split_weight, share_gradient, read_stored):
        return True
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first.op == "call_function" and first.target is split_weight


def _expose_private(graph: fx.Graph, model: nn.Module) -> None:
    """Hand modules that belong to one path their weights as values, as lift_weights does."""
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        assert isinstance(node.target, str)
        owned = dict(model.get_submodule(node.target).named_parameters(remove_duplicate=False))
        if not owned:
            continue
        with graph.inserting_before(node):
            owner = graph.create_node("get_attr", node.target)
            handed = {
                name: graph.create_node("get_attr", f"{node.target}.{name}") for name in owned
            }
            call = graph.create_node(
                "call_function", apply_layer, (owner, handed, *node.args), dict(node.kwargs)
            )
        call.meta.update(node.meta)
        call.meta["layer"] = node.target  # whose buffers and random numbers a second run needs
        node.replace_all_uses_with(call)
        graph.erase_node(node)
