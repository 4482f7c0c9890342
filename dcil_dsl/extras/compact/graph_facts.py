"""What the nodes of a graph give for an example, and moves done to stand-ins for it.

In:   a graph, the model it names into, example inputs.
Out:  shapes and numbers by node; the result of a move on values that broadcast to the shapes.
Not:  nothing is concluded from them.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.extras.compact.operations import name_of


def observe(graph: fx.Graph, model: nn.Module, example_inputs: tuple) -> dict[fx.Node, object]:
    """What each node gives for the example: tensors as shapes on the meta device."""
    seen = {}

    class Watch(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            seen[node] = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), result)
            return result

    modes = {module: module.training for module in model.modules()}
    model.eval()  # in training mode batch norms would learn from the example
    with torch.no_grad():
        Watch(model, graph=graph).run(*pytree.tree_map_only(Tensor, torch.clone, example_inputs))
    for module, mode in modes.items():
        module.training = mode
    return seen


def shrink_repeats(tensor: Tensor) -> Tensor:
    """Size 1 in each dim along which nothing changes; NaN counts as equal to NaN."""
    for dim in range(tensor.dim()):
        if tensor.shape[dim] > 1:
            first = tensor.narrow(dim, 0, 1)
            same = (tensor == first) | (tensor.isnan() & first.isnan())
            if tensor.stride(dim) == 0 or bool(same.all()):
                tensor = first
    return tensor


def vector_along(tensor: Tensor, dim: int, size: int) -> Tensor | None:
    """The numbers along one dim, (size,); None where they change along another dim too."""
    if tensor.numel() != tensor.shape[dim]:
        return None
    return tensor.reshape(-1).expand(size)


def replay(node: fx.Node, model: nn.Module, seen: dict, values: dict):
    """Do what a MOVE does to values that stand for the tensors, each broadcast to its shape."""

    def full(source: fx.Node):
        def spread(shape, value):
            return value.expand(shape.shape).contiguous() if isinstance(shape, Tensor) else value

        return pytree.tree_map(spread, seen[source], values[source])

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), full)
    match node.op:
        case "call_module":
            result = model.get_submodule(node.target)(*args, **kwargs)
        case "call_method":
            result = getattr(args[0], node.target)(*args[1:], **kwargs)
        case _:
            result = node.target(*args, **kwargs)
    return pytree.tree_map_only(Tensor, shrink_repeats, result)


def told(node: fx.Node, model: nn.Module) -> str:
    """A node as its reader knows it: the module's path and class, or the function's name."""
    if node.op == "call_module":
        return f"`{node.target}` ({type(model.get_submodule(node.target)).__name__})"
    return f"`{name_of(node) or node.name}`"
