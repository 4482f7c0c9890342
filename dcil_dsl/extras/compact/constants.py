"""Find the values of a network that do not depend on its input.

In:   the Dependencies of a graph, which have seen what each node gives, and the weights.
Out:  for each node its values where they are constant, NaN where they depend on the input.
Not:  nothing is folded or removed; rounding aside, a value said to be constant is one.

A dead filter does not give zero: its bias goes through batch norm and activation to the next
layer. These are the numbers that the next layer has to be given when the filter leaves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.model.channels.dependencies import Dependencies
from dcil_dsl.model.channels.operations import (
    MULTIPLIES,
    POOLS,
    Kind,
    Weighing,
    argument,
    mixed_dims,
    name_of,
    norming_of,
    replay,
    shrink_repeats,
    weighing_of,
    writes_into_its_input,
)

NAN = float("nan")
Values = dict[fx.Node, Any]  # of each node: tensors where it gives tensors, else what it gives


@torch.no_grad()
def find_constants(found: Dependencies) -> Values:
    """The constant values of each node in float64: tensors that broadcast to its shape."""
    values: Values = {}
    changed = _changed(found)
    for node in found.graph.nodes:
        value = _value(node, found, values)
        if node in changed:
            value = pytree.tree_map_only(Tensor, _unknown, found.seen[node])
        values[node] = value
    return values


def _changed(found: Dependencies) -> set[fx.Node]:
    """Nodes that a later node writes into and other nodes read too."""
    writers = [n for n in found.graph.nodes if writes_into_its_input(n, found.model)]
    sources = {source for node in writers for source in node.all_input_nodes[:1]}
    return {source for source in sources if len(source.users) > 1}


def _value(node: fx.Node, found: Dependencies, values: Values) -> Any:
    seen, model = found.seen[node], found.model
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(seen)):
        return seen
    result = None
    kind = found.kind(node)
    if kind is Kind.TENSOR:
        result = _tensor(str(node.target), model)
    elif kind is Kind.POINTWISE:
        result = _pointwise(node, found, values)
    elif kind is Kind.MOVE:
        result = replay(node, model, found.seen, values)
    elif kind is Kind.ALONG:
        result = _along(node, found, values)
    elif kind is Kind.BATCH_NORM:
        result = _batch_norm(node, found, values)
    elif kind is Kind.WEIGH:
        result = _weigh(node, found, values)
    elif kind is Kind.ATTEND:
        # The weights of a query add up to one: values equal at every place stay what they are.
        v, mask = values[cast(fx.Node, node.args[2])], argument(node, 3, "attn_mask")
        dropped = argument(node, 4, "dropout_p", 0.0) != 0.0
        result = None if mask is not None or dropped or v.shape[-2] > 1 else v
    if result is None:
        return pytree.tree_map_only(Tensor, _unknown, seen)
    return pytree.tree_map_only(Tensor, shrink_repeats, result)


def _unknown(seen: Tensor) -> Tensor:
    return torch.full((1,) * seen.dim(), NAN, dtype=torch.float64)


def _tensor(name: str, model: nn.Module) -> Tensor | None:
    owner, _, attribute = name.rpartition(".")
    value = getattr(model.get_submodule(owner), attribute)
    return value.detach().double() if isinstance(value, Tensor) else None


def _pointwise(node: fx.Node, found: Dependencies, values: Values) -> Tensor:
    """The operation itself on what is known; unknown where one of its operands is."""
    model = found.model
    operands = [v for v in map(values.get, node.all_input_nodes) if isinstance(v, Tensor)]
    unknown = torch.stack(torch.broadcast_tensors(*[v.isnan() for v in operands])).any(0)
    writes = writes_into_its_input(node, model)

    def known(source: fx.Node) -> Any:
        value = values[source]
        if not isinstance(value, Tensor):
            return value
        dtype = found.seen[source].dtype
        value = value.nan_to_num(0.0)
        if not dtype.is_floating_point:  # a condition stays one
            value = value.to(dtype)
        # What is written into must have the shape of the result, which it broadcasts to.
        return value.expand(unknown.shape).clone() if writes else value

    given: Any = fx.node.map_arg((node.args, node.kwargs), known)
    target: Any = node.target
    args, kwargs = given
    if node.op == "call_module":
        module = model.get_submodule(target)
        if isinstance(module, nn.PReLU):  # one slope per channel: 0 stays 0
            result, unknown = operands[0].nan_to_num(), unknown | (operands[0] != 0)
        else:
            result = module(*args)
    elif node.op == "call_method":
        result = getattr(args[0], target)(*args[1:], **kwargs)
    else:
        result = target(*args, **kwargs)
    result, unknown = torch.broadcast_tensors(result.double(), unknown)
    if name_of(node) in MULTIPLIES:
        zero = torch.stack(torch.broadcast_tensors(*[v == 0 for v in operands])).any(0)
        result, unknown = result.masked_fill(zero, 0.0), unknown & ~zero
    filled: Tensor = result.masked_fill(unknown, NAN)
    return filled


def _along(node: fx.Node, found: Dependencies, values: Values) -> Tensor | None:
    source = node.all_input_nodes[0]
    value: Tensor = values[source]
    dims = mixed_dims(node, found.model, found.seen[source].dim())
    module = found.model.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = name_of(node)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.LayerNorm):
        return None
    if dims is None or not (module or name in POOLS | {"mean", "pad", "sum"}):
        return None
    if name == "sum":  # of anything but zeros it depends on how many there are
        for dim in dims:
            value = value.abs().sum(dim, keepdim=True)
        value = value.masked_fill(value != 0, NAN)
    if any(value.shape[dim] > 1 for dim in dims):
        return None
    # Zeros beyond the border are averaged with the constant; beyond max pooling's lies nothing.
    if isinstance(module, nn.modules.pooling._AvgPoolNd) or name.startswith("avg_pool"):
        padding: Any = module.padding if module else argument(node, 3, "padding", 0)
        if padding not in (0, (0,) * len(dims)):
            value = value.masked_fill(value != 0, NAN)
    elif name == "pad":
        mode, fill = argument(node, 2, "mode", "constant"), argument(node, 3, "value", 0)
        if mode == "constant":
            value = value.masked_fill(value != (fill or 0), NAN)
    if found.seen[node].dim() == value.dim():
        return value
    return value.reshape([s for d, s in enumerate(value.shape) if d not in dims])


def _batch_norm(node: fx.Node, found: Dependencies, values: Values) -> Tensor | None:
    norm = norming_of(node, found.model)
    assert norm is not None
    value: Tensor = values[norm.source]
    shape = [-1 if dim == 1 else 1 for dim in range(value.dim())]
    weight, bias, mean, var = (
        None if key is None else _tensor(key, found.model)
        for key in (norm.weight, norm.bias, norm.mean, norm.var)
    )
    assert mean is not None and var is not None  # Kind.BATCH_NORM has running statistics
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    scale, shift = scale.reshape(shape), shift.reshape(shape)
    return torch.where(scale == 0, shift, value * scale + shift)


def _weigh(node: fx.Node, found: Dependencies, values: Values) -> Tensor:
    seen, model = found.seen[node], found.model
    call = weighing_of(node, model)
    assert call is not None
    axis = call.axis % seen.dim()
    blocks = call.blocks(model.get_parameter(call.weight).detach())
    columns = constant_columns(call, found, values).reshape(call.groups, -1)
    lost = columns.isnan() | ((columns != 0) & call.bordered)
    unknown = ((blocks != 0).any(-1) & lost[:, None]).any(-1).reshape(-1)
    rows = add_up(blocks, columns.nan_to_num(0.0)).reshape(-1)
    bias = None if call.bias is None else _tensor(call.bias, model)
    if bias is not None:
        rows = rows + bias
    rows = rows.masked_fill(unknown, NAN)
    return rows.reshape([-1 if dim == axis else 1 for dim in range(seen.dim())])


def add_up(blocks: Tensor, columns: Tensor) -> Tensor:
    """The sum of weight * column for each row in float64: (groups, rows, columns, taps) -> rows."""
    matter = (columns != 0).any(0)
    return (blocks[:, :, matter].double().sum(-1) * columns[:, None, matter]).sum(-1)


def constant_columns(call: Weighing, found: Dependencies, values: Values) -> Tensor:
    """The constants of a layer's columns, (columns,); NaN where they depend on input or place."""
    seen = found.seen[call.source]
    axis = call.axis % seen.dim()
    value: Tensor = values[call.source]
    rows = value.movedim(axis, -1)
    rows = rows.reshape(rows.shape[:-1].numel(), rows.shape[-1])
    same = (rows == rows[:1]).all(0)
    return rows[0].masked_fill(~same, NAN).expand(seen.shape[axis])
