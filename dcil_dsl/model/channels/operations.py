"""Facts about the nodes of a graph: what each does to channels, and what it gives for an example.

In:   a graph, the model whose modules it calls, example inputs.
Out:  Kind of a node; Weighing, the weights of convolutions and linear layers as rows that read
      columns; shapes and numbers by node; the result of a move on values that broadcast to them.
Not:  nothing is concluded. A call that stands in no table here is UNKNOWN and keeps what it
      touches.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

Conv, ConvTransposed = nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd
BatchNorm = nn.modules.batchnorm._BatchNorm


class Kind(Enum):
    """How output channels follow from input channels."""

    INPUT = auto()
    OUTPUT = auto()
    TENSOR = auto()  # a parameter or buffer that the forward reads by hand
    SIZE = auto()  # no tensor comes out: shapes, numbers, assertions
    POINTWISE = auto()  # each element from those at its place
    MOVE = auto()  # the same elements elsewhere: view, permute, cat, chunk, x[...]
    ALONG = auto()  # mixes along some dims, each channel for itself: pooling, mean, softmax
    BATCH_NORM = auto()
    GROUP_NORM = auto()
    WEIGH = auto()  # convolutions and linear layers
    ATTEND = auto()  # scaled_dot_product_attention
    MATMUL = auto()
    UNKNOWN = auto()


POINTWISE = set(
    "add iadd add_ sub isub sub_ mul imul mul_ truediv itruediv div div_ neg pow square sqrt rsqrt "
    "abs exp maximum minimum where relu relu_ relu6 leaky_relu elu selu celu gelu silu mish "
    "sigmoid sigmoid_ hardsigmoid hardswish hardtanh tanh tanh_ softplus softsign logsigmoid "
    "clamp clamp_ clip dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "stochastic_depth maybe_add_mask float double half bfloat16 to type_as clone detach contiguous "
    "expand_as identity".split()
)
MULTIPLIES = {"mul", "imul", "mul_"}  # zero times anything is zero
POINTWISE_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Threshold,
    nn.modules.dropout._DropoutNd,
)
MOVES = set(
    "getitem view reshape flatten unflatten permute transpose swapaxes movedim t squeeze unsqueeze "
    "expand repeat cat concat concatenate stack chunk split unbind narrow roll flip".split()
)
JOINING = {"cat", "concat", "concatenate", "stack"}  # moves that take several tensors
MOVE_MODULES = (nn.Flatten,)
POOLS = set(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d interpolate upsample".split()
)
POOL_MODULES = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
)
OVER_DIMS = {"mean", "sum", "amax", "amin", "softmax", "log_softmax"}
ALONG = POOLS | OVER_DIMS | {"pad", "layer_norm"}
SIZES = set("size dim numel _assert len ndim shape dtype device is_cuda getattr".split())
WRAPPED = {  # functions of libraries that fx does not look into, and where they are defined
    "stochastic_depth": "torchvision.ops.stochastic_depth",
    "maybe_add_mask": "timm.layers.attention",
}
FROM = (torch, F, operator, Tensor)  # where a known function must really come from


def kind_of(node: fx.Node, model: nn.Module) -> Kind:
    """The kind of a node, from what it calls."""
    match node.op:
        case "placeholder":
            return Kind.INPUT
        case "output":
            return Kind.OUTPUT
        case "get_attr":
            return Kind.TENSOR
        case "call_module":
            kind = _of_module(model.get_submodule(str(node.target)))
            weighs = kind is not Kind.WEIGH or weighing_of(node, model) is not None
            return kind if weighs else Kind.UNKNOWN
    name = name_of(node)
    if weighing_of(node, model) is not None:
        return Kind.WEIGH
    if norming_of(node, model) is not None:
        return Kind.BATCH_NORM if name == "batch_norm" else Kind.GROUP_NORM
    for names, kind in (
        (POINTWISE, Kind.POINTWISE),
        (MOVES, Kind.MOVE),
        (ALONG, Kind.ALONG),
        (SIZES, Kind.SIZE),
        ({"scaled_dot_product_attention"}, Kind.ATTEND),
        ({"matmul", "bmm"}, Kind.MATMUL),
    ):
        if name in names:
            return kind
    return Kind.UNKNOWN


def _of_module(module: nn.Module) -> Kind:
    match module:
        case Conv() | nn.Linear():
            return Kind.WEIGH
        case BatchNorm() if module.track_running_stats:
            return Kind.BATCH_NORM
        case nn.GroupNorm():
            return Kind.GROUP_NORM
        case nn.Softmax() | nn.LogSoftmax() | nn.LayerNorm():
            return Kind.ALONG
    for classes, kind in (
        (POINTWISE_MODULES, Kind.POINTWISE),
        (MOVE_MODULES, Kind.MOVE),
        (POOL_MODULES, Kind.ALONG),
    ):
        if isinstance(module, classes):
            return kind
    return Kind.UNKNOWN


def name_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls; "" for a stranger's function."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    name = getattr(node.target, "__name__", "")
    if node.target is getattr or node.target is len:
        return name
    if WRAPPED.get(name) == getattr(node.target, "__module__", None):
        return name
    known = any(getattr(place, name, None) is node.target for place in FROM)
    return name if known or name == "_assert" else ""


def writes_into_its_input(node: fx.Node, model: nn.Module) -> bool:
    """`x += y`, `x.relu_()`, nn.ReLU(inplace=True): who else reads x sees what became of it."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = name_of(node) or str(node.target)
    inside = node.op in ("call_function", "call_method") and not name.startswith("__")
    in_place = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv", "setitem")
    return inside and (in_place or node.kwargs.get("inplace") is True)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call by its position or its name; `x` itself is position 0."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


# -- rows that read columns ----------------------------------------------------------------------


@dataclass(frozen=True)
class Weighing:
    """A convolution or a linear layer: y[row] = bias[row] + sum over columns of w[row, column] x.

    axis        the channel dim of x and y: 1 of a convolution, -1 of a linear layer
    bordered    a constant channel does not stay one: zeros beyond the border, or a transposed
                convolution, in which not every place meets every tap
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    axis: int
    groups: int = 1
    transposed: bool = False
    bordered: bool = False

    def blocks(self, weight: Tensor) -> Tensor:
        """The weight as (groups, rows of a group, columns of a group, taps)."""
        taps = weight.shape[2:].numel()  # -1 could be any number in a layer of no rows
        if not self.transposed:
            rows, columns = weight.shape[:2]
            return weight.reshape(self.groups, rows // self.groups, columns, taps)
        columns, rows = weight.shape[:2]
        return weight.reshape(self.groups, columns // self.groups, rows, taps).transpose(1, 2)

    def unblock(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """The weight of this shape from its blocks."""
        return (blocks.transpose(1, 2) if self.transposed else blocks).reshape(shape)


def weighing_of(node: fx.Node, model: nn.Module) -> Weighing | None:
    """The weights that a node multiplies with; None for another layer."""
    if node.op == "call_module":
        return _of_layer(node, model.get_submodule(str(node.target)))
    name = name_of(node) if node.op == "call_function" else ""
    if name not in ("linear", "conv1d", "conv2d", "conv3d"):
        return None
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    if not _is_parameter(weight) or not (bias is None or _is_parameter(bias)):
        return None
    source = argument(node, 0, "input")
    keys = weight.target, None if bias is None else bias.target
    if name == "linear":
        return Weighing(node, source, *keys, axis=-1)
    if argument(node, 6, "groups", 1) != 1:
        return None
    borders = _borders(argument(node, 4, "padding", 0))
    return Weighing(node, source, *keys, axis=1, bordered=borders)


def _of_layer(node: fx.Node, module: nn.Module) -> Weighing | None:
    # A parametrised weight is computed anew at each call: there is no tensor to make smaller.
    if module._parameters.get("weight") is None or len(node.all_input_nodes) != 1:
        return None
    weight = f"{node.target}.weight"
    bias = None if module._parameters.get("bias") is None else f"{node.target}.bias"
    match module:
        case nn.Linear():
            return Weighing(node, node.all_input_nodes[0], weight, bias, axis=-1)
        case Conv():
            transposed = isinstance(module, ConvTransposed)
            zeros = module.padding_mode == "zeros" and _borders(module.padding)
            return Weighing(
                node,
                node.all_input_nodes[0],
                weight,
                bias,
                axis=1,
                groups=module.groups,
                transposed=transposed,
                bordered=transposed or zeros,
            )
    return None


def _borders(padding: str | int | Iterable[int]) -> bool:
    match padding:
        case str():
            return padding != "valid"
        case int():
            return padding > 0
    return any(side > 0 for side in padding)


def _is_parameter(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


@dataclass(frozen=True)
class Norming:
    """A norm with numbers for each channel, by their names; None where it has none.

    groups  of a group norm; None: a batch norm in evaluation
    """

    node: fx.Node
    source: fx.Node
    weight: str | None
    bias: str | None
    mean: str | None = None
    var: str | None = None
    eps: float = 1e-5
    groups: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return tuple(k for k in (self.weight, self.bias, self.mean, self.var) if k is not None)


def norming_of(node: fx.Node, model: nn.Module) -> Norming | None:
    """The norm that a node computes: a module, or a function of parameters and buffers."""
    if node.op == "call_module":
        return _of_norm(node, model.get_submodule(str(node.target)))
    name = name_of(node) if node.op == "call_function" else ""
    # F.batch_norm(x, mean, var, weight, bias, training), F.group_norm(x, groups, weight, bias)
    places = {"batch_norm": (3, 4, 1, 2), "group_norm": (2, 3, None, None)}.get(name)
    if places is None or not isinstance(node.args[0], fx.Node):
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    given = [
        argument(node, place, own) if place is not None else None
        for place, own in zip(places, names, strict=True)
    ]
    if not all(tensor is None or _is_parameter(tensor) for tensor in given):
        return None
    weight, bias, mean, var = (None if t is None else str(t.target) for t in given)
    if name == "group_norm":
        eps = argument(node, 4, "eps", 1e-5)
        groups = argument(node, 1, "num_groups")
        return Norming(node, node.args[0], weight, bias, eps=eps, groups=groups)
    if mean is None or var is None or argument(node, 5, "training", False) is not False:
        return None
    return Norming(node, node.args[0], weight, bias, mean, var, argument(node, 7, "eps", 1e-5))


def _of_norm(node: fx.Node, module: nn.Module) -> Norming | None:
    if not isinstance(module, BatchNorm | nn.GroupNorm) or len(node.all_input_nodes) != 1:
        return None
    own = {**module._parameters, **module._buffers}
    weight, bias, mean, var = (
        None if own.get(name) is None else f"{node.target}.{name}"
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else None
    if groups is None and (mean is None or var is None):
        return None
    return Norming(node, node.all_input_nodes[0], weight, bias, mean, var, module.eps, groups)


def mixed_dims(node: fx.Node, model: nn.Module, rank: int) -> set[int] | None:
    """The dims that a node of kind ALONG mixes; None where it cannot be told."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    match module:
        case nn.LayerNorm():
            return set(range(rank - len(module.normalized_shape), rank))
        case nn.Softmax() | nn.LogSoftmax():
            return None if module.dim is None else {module.dim % rank}
        case nn.Module():
            return set(range(2, rank))
    name = name_of(node)
    if name == "pad":
        sides = argument(node, 1, "pad")
        if not all(isinstance(side, int) for side in sides):
            return None
        return {rank - 1 - index // 2 for index, side in enumerate(sides) if side}
    if name == "layer_norm":
        return set(range(rank - len(argument(node, 1, "normalized_shape")), rank))
    if name in OVER_DIMS:
        dims = argument(node, 1, "dim")
        if dims is None:
            return None if "softmax" in name else set(range(rank))
        return {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)}
    return set(range(2, rank))


def observe(
    graph: fx.Graph, model: nn.Module, example_inputs: tuple[Any, ...]
) -> dict[fx.Node, Any]:
    """What each node gives for the example: tensors as shapes on the meta device."""
    seen: dict[fx.Node, Any] = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
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


def replay(
    node: fx.Node, model: nn.Module, seen: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any]
) -> Any:
    """Do what a MOVE does to values that stand for the tensors, each broadcast to its shape."""

    def full(source: fx.Node) -> Any:
        def spread(shape: Any, value: Any) -> Any:
            return value.expand(shape.shape).contiguous() if isinstance(shape, Tensor) else value

        return pytree.tree_map(spread, seen[source], values[source])

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), full)
    match node.op:
        case "call_module":
            result = model.get_submodule(str(node.target))(*args, **kwargs)
        case "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case _:
            assert callable(node.target)
            result = node.target(*args, **kwargs)
    return pytree.tree_map_only(Tensor, shrink_repeats, result)


def told(node: fx.Node, model: nn.Module) -> str:
    """A node as its reader knows it: the module's path and class, or the function's name."""
    if node.op == "call_module":
        return f"`{node.target}` ({type(model.get_submodule(str(node.target))).__name__})"
    return f"`{name_of(node) or node.name}`"
