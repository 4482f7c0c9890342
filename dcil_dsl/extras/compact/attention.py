"""nn.MultiheadAttention opened up: its projections and heads become nodes of the graph.

In:   a graph, the model it names into, and the modules to open.
Out:  the graph, changed in place: linear, split into heads, attention, joined, out_proj.
Not:  no weight is touched; a call whose masks or outputs need the module stays, with the reason.
"""

from __future__ import annotations

import operator

import torch.nn.functional as F
from torch import Tensor, fx, nn


def attention_calls(graph: fx.Graph, model: nn.Module) -> list[fx.Node]:
    """The calls of nn.MultiheadAttention, in execution order."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and type(model.get_submodule(node.target)) is nn.MultiheadAttention
    ]


def why_closed(node: fx.Node, model: nn.Module) -> str | None:
    """Why a call must stay whole; None where it can be opened."""
    module = model.get_submodule(node.target)
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = dict(zip(names, node.args)) | node.kwargs
    if module.in_proj_weight is None or not (given["query"] is given["key"] is given["value"]):
        return "its queries, keys and values come from different tensors"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys of its own"
    if any(given.get(name) is not None for name in ("key_padding_mask", "attn_mask")):
        return "it is given a mask"
    if given.get("is_causal"):
        return "it is causal"
    for user in node.users:
        taken = user.args[1] if user.op == "call_function" and len(user.args) == 2 else None
        if taken != 0 and (user.users or taken != 1):
            return "its attention weights are used"
    return None


def open_attention(graph: fx.Graph, node: fx.Node, model: nn.Module) -> None:
    """Replace one call by the nodes that it is made of. x is (B, N, E), or (N, B, E)."""
    module = model.get_submodule(node.target)
    heads, width = module.num_heads, module.head_dim
    query = node.args[0] if node.args else node.kwargs["query"]
    name = node.target
    with graph.inserting_before(node):
        weight = graph.get_attr(f"{name}.in_proj_weight")
        bias = None if module.in_proj_bias is None else graph.get_attr(f"{name}.in_proj_bias")
        sizes = [graph.call_method("size", (query, dim)) for dim in (0, 1)]
        packed = graph.call_function(F.linear, (query, weight, bias))
        parts = graph.call_method("chunk", (packed, 3, -1))
        to_heads = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
        back = (0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3)
        split = []
        for index in range(3):
            part = graph.call_function(operator.getitem, (parts, index))
            part = graph.call_method("reshape", (part, *sizes, heads, width))
            split.append(graph.call_method("permute", (part, *to_heads)))
        attended = graph.call_function(F.scaled_dot_product_attention, tuple(split))
        joined = graph.call_method("permute", (attended, *back))
        joined = graph.call_method("reshape", (joined, *sizes, heads * width))
        out = graph.call_module(f"{name}.out_proj", (joined,))
    for user in list(node.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(out)
        graph.erase_node(user)
    graph.erase_node(node)


def dead_heads(module: nn.MultiheadAttention) -> list[int]:
    """Heads whose values are all computed from zero weights, or which nothing reads.

    Zero rows of q and k alone do not make a head dead: it then averages the values.
    """
    if module.in_proj_weight is None:
        return []
    heads = module.num_heads
    values = module.in_proj_weight.detach().chunk(3)[2].reshape(heads, -1)
    read: Tensor = module.out_proj.weight.detach().T.reshape(heads, -1)
    gone = (values == 0).all(1) | (read == 0).all(1)
    return gone.nonzero().flatten().tolist()
