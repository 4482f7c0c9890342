"""Trace a model, number its channels, and cut channels out of it.

In:   a model and the inputs of one call; later the channels that go.
Out:  Followed: its trace for evaluation and its Dependencies, attention opened where heads are
      dead; the model and its graph, cut in place: smaller tensors, smaller sizes.
Not:  dead_channels.py or a shape file decides which channels go. Values are selected, never
      changed; compaction.py proves the result by running both networks.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.dead_channels import gone_along
from dcil_dsl.extras.compact.files import Kept, ModuleSizes, gather
from dcil_dsl.extras.compact.fold_constants import replace_branch
from dcil_dsl.model.channels.dependencies import Dependencies
from dcil_dsl.model.channels.operations import Conv, ConvTransposed, argument, name_of
from dcil_dsl.model.channels.rules import find_dependencies
from dcil_dsl.model.inputs import Arguments, Inputs
from dcil_dsl.model.trace import Traced, TraceError, constants, trace_model


def attention_calls(graph: fx.Graph, model: nn.Module) -> list[fx.Node]:
    """The calls of nn.MultiheadAttention, in execution order."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and type(model.get_submodule(str(node.target))) is nn.MultiheadAttention
    ]


def why_closed(node: fx.Node, model: nn.Module) -> str | None:
    """Why a call must stay opaque; None where it can be opened."""
    module = _attention(node, model)
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


def _attention(node: fx.Node, model: nn.Module) -> nn.MultiheadAttention:
    return cast(nn.MultiheadAttention, model.get_submodule(str(node.target)))


def open_attention(graph: fx.Graph, node: fx.Node, model: nn.Module) -> None:
    """Replace one call by the nodes that it is made of. x is (B, N, E), or (N, B, E)."""
    module = _attention(node, model)
    heads, width = module.num_heads, module.head_dim
    query = node.args[0] if node.args else node.kwargs["query"]
    name = str(node.target)
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


@dataclass(frozen=True)
class Followed:
    """The modules that the graph no longer calls as such.

    opened    attention modules whose heads are nodes of the graph
    replaced  layers and norms that give a constant, their bias
    """

    traced: Traced
    found: Dependencies
    opened: tuple[str, ...]
    replaced: tuple[str, ...] = ()

    @property
    def used(self) -> set[str]:
        """The names of the tensors that the graph uses."""
        nodes = [n for n in self.found.graph.nodes if n.op in ("call_module", "get_attr")]
        targets = {str(node.target) for node in nodes}
        return {
            key
            for key in self.found.first
            if key in targets or any(key.startswith(f"{target}.") for target in targets)
        }


def follow(
    model: nn.Module,
    inputs: Inputs,
    opened: tuple[str, ...] | None = None,
    replaced: tuple[str, ...] = (),
) -> Followed:
    """Trace a copy of `model` on the CPU and number its channels.

    opened    the attention modules to open; None: those that have a dead head and can be opened
    replaced  the modules in whose place their bias is put

    InputError where the model cannot be traced, or is one call as a whole.
    """
    help = "`dcil explain E401` says what can be traced"
    try:
        traced = trace_model(model, inputs)
    except TraceError as error:
        raise InputError(str(error), help=help) from error
    if "" in traced.opaque:
        reason = traced.opaque[""]
        raise InputError(f"the forward of {traced.name} cannot be traced: {reason}", help=help)
    traced.model.cpu().eval()  # its zeros are looked at tensor by tensor, constants as evaluated
    graph = copy.deepcopy(traced.eval)
    calls = attention_calls(graph, traced.model)
    if opened is None:
        calls = _with_dead_heads(calls, traced.model)
    else:
        calls = [node for node in calls if node.target in opened]
    for node in calls:
        open_attention(graph, node, traced.model)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in replaced:
            replace_branch(graph, node, traced.model)
    bound = traced.arguments.bind(inputs.args, inputs.kwargs)
    found = find_dependencies(graph, traced.model, bound, traced.opaque)
    return Followed(traced, found, tuple(str(node.target) for node in calls), replaced)


def make_small(followed: Followed, gone: Tensor) -> tuple[nn.Module, dict[str, ModuleSizes]]:
    """Cut the traced model in place; it keeps its own class where that still knows how to run.

    It does if the graph did not have to change and evaluation uses every weight: the auxiliary
    heads of training would read removed channels.
    """
    model, found = followed.traced.model, followed.found
    before = {path: sizes_of(module) for path, module in model.named_modules()}
    idle = any(key not in followed.used for key, _ in model.named_parameters())
    edited = cut(found, gone) or bool(followed.opened or followed.replaced)
    modules = {
        path: ModuleSizes(type=type(module).__name__, before=before[path], after=after)
        for path, module in model.named_modules()
        if (after := sizes_of(module)) != before[path]
    }
    if not edited and not idle:
        for name in constants(model):  # which its forward makes anew
            delattr(model, name)
        model.eval()
        return model, modules
    _take_fixed(found.graph, followed.traced.arguments)
    small = fx.GraphModule(model, found.graph, f"Small{followed.traced.name}").eval()
    small.graph.eliminate_dead_code()
    small.delete_all_unused_submodules()
    small.recompile()
    return small, modules


def _take_fixed(graph: fx.Graph, arguments: Arguments) -> None:
    """The flags and numbers of the example stay arguments: each call has to give the same."""
    given = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    names = [*arguments.positional, *given, *arguments.fixed]
    taken = [name for name in dict.fromkeys(names) if name in given or name in arguments.fixed]
    following = next(node for node in graph.nodes if node.op != "placeholder")
    for name in reversed(taken):
        with graph.inserting_before(following):
            place = given.get(name) or graph.placeholder(name)
        if name in arguments.fixed:
            value: Any = arguments.fixed[name]
            with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
                same = graph.call_function(operator.eq, (place, value))
                graph.call_function(torch._assert, (same, f"`{name}` is not {value!r}"))
        following = place


def _with_dead_heads(calls: list[fx.Node], model: nn.Module) -> list[fx.Node]:
    names = [node.target for node in calls]
    return [
        node
        for node in calls
        if dead_heads(_attention(node, model))
        and why_closed(node, model) is None
        and names.count(node.target) == 1
    ]


def kept_indices(found: Dependencies, gone: Tensor) -> dict[str, Kept]:
    """For each tensor that shrinks the indices that stay, by dim."""
    kept: dict[str, Kept] = {}
    for axis in found.axes.values():
        stays = ~gone[axis.channels]
        if not stays.all():
            indices = [row.nonzero().flatten().tolist() for row in torch.atleast_2d(stays)]
            kept.setdefault(axis.key, {})[axis.dim] = indices if stays.dim() == 2 else indices[0]
    return kept


def cut(found: Dependencies, gone: Tensor) -> bool:
    """Cut model and graph in place. True where the graph had to change with them.

    Where it is False the forward of the original class runs on the smaller layers.
    """
    edited = _cut_graph(found, gone)
    groups = {module: _groups(found, path, module, gone) for path, module in _grouped(found)}
    kept = kept_indices(found, gone)
    twins: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for key, tensor in _tensors(found.model):
        first = names.setdefault(id(tensor), key)
        if first not in kept:
            continue
        if id(tensor) not in twins:
            small = gather(tensor.detach(), kept[first])
            if isinstance(tensor, nn.Parameter):
                small = nn.Parameter(small, requires_grad=tensor.requires_grad)
            twins[id(tensor)] = small
        owner, _, name = key.rpartition(".")
        setattr(found.model.get_submodule(owner), name, twins[id(tensor)])
    for path in {key.rpartition(".")[0] for key in kept}:
        module = found.model.get_submodule(path)
        for name, value in sizes_of(module, groups.get(module)).items():
            setattr(module, name, value)
    return edited


def sizes_of(module: nn.Module, groups: int | None = None) -> dict[str, int]:
    """The sizes that a module names, read from its tensors; groups None: as many as it has."""
    weight = module._parameters.get("weight")
    match module:
        case nn.modules.batchnorm._BatchNorm() if module.running_mean is not None:
            return {"num_features": len(module.running_mean)}
        case _ if weight is None:  # it has none, or computes it at each call
            return {}
        case ConvTransposed():
            groups = groups or module.groups
            sizes = {"in_channels": len(weight), "out_channels": weight.shape[1] * groups}
            return sizes | {"groups": groups}
        case Conv():
            groups = groups or module.groups
            sizes = {"in_channels": weight.shape[1] * groups, "out_channels": len(weight)}
            return sizes | {"groups": groups}
        case nn.Linear():
            return {"in_features": weight.shape[1], "out_features": len(weight)}
        case nn.GroupNorm():
            return {"num_channels": len(weight), "num_groups": groups or module.num_groups}
        case nn.PReLU():
            return {"num_parameters": len(weight)}
    return {}


def _grouped(found: Dependencies) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and group norms, whose count of groups may shrink."""
    for path, module in found.model.named_modules():
        if isinstance(module, Conv | nn.GroupNorm) and (f"{path}.weight", 0) in found.axes:
            yield path, module


def _groups(found: Dependencies, path: str, module: nn.Module, gone: Tensor) -> int:
    count = module.num_groups if isinstance(module, nn.GroupNorm) else module.groups
    assert isinstance(count, int)
    stays = ~gone[found.axes[f"{path}.weight", 0].channels]
    return int(stays.reshape(count, -1).any(1).sum())


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


Shrunk = dict[fx.Node, dict[int, Tensor]]  # of nodes that give tensors: by dim what goes


# -- the graph -----------------------------------------------------------------------------------


def _cut_graph(found: Dependencies, gone: Tensor) -> bool:
    """Give every size that the graph names its new value."""
    slices = {node: gone_along(node, c, gone, found) for node, c in found.tensors()}
    shrunk = {
        node: {dim: mask for dim, mask in dims.items() if mask.any()}
        for node, dims in slices.items()
    }
    changes = [_cut_node(node, found, shrunk) for node in list(found.graph.nodes)]
    return any(changes)


def _cut_node(node: fx.Node, found: Dependencies, shrunk: Shrunk) -> bool:
    name = name_of(node)
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if name in ("view", "reshape", "expand") and shrunk.get(node):
        return _cut_shape(node, shrunk[node])
    if name == "unflatten" and shrunk.get(node):
        return _cut_unflattened(node, shrunk[node], found)
    if name == "group_norm" and 1 in shrunk.get(node, {}):
        return _cut_groups(node, shrunk[node][1])
    if source is None:
        return False
    if name in ("chunk", "split") and shrunk.get(source):
        return _cut_parts(node, source, shrunk[source], found)
    if name == "getitem" and shrunk.get(source):
        return _cut_slices(node, source, shrunk[source], found)
    return _hold_size(node, found, shrunk)


def _cut_shape(node: fx.Node, shrunk: dict[int, Tensor]) -> bool:
    first: Any = node.args[1]
    packed = isinstance(first, tuple | list)
    sizes = list(first if packed else node.args[1:])
    before = list(sizes)
    for dim, mask in shrunk.items():
        if sizes[dim] != -1:
            sizes[dim] = int((~mask).sum())
    node.args = (node.args[0], tuple(sizes)) if packed else (node.args[0], *sizes)
    return sizes != before


def _cut_groups(node: fx.Node, gone: Tensor) -> bool:
    """As many groups as stay; each goes as a whole."""
    groups = argument(node, 1, "num_groups")
    left = int((~gone).reshape(groups, -1).any(1).sum())
    kwargs = {name: value for name, value in node.kwargs.items() if name != "num_groups"}
    node.args, node.kwargs = (node.args[0], left, *node.args[2:]), kwargs
    return True


def _cut_unflattened(node: fx.Node, shrunk: dict[int, Tensor], found: Dependencies) -> bool:
    source = node.all_input_nodes[0]
    first = argument(node, 1, "dim") % found.seen[source].dim()
    before = list(argument(node, 2, "sizes"))
    sizes = list(before)
    for dim, mask in shrunk.items():
        if 0 <= dim - first < len(sizes) and sizes[dim - first] != -1:
            sizes[dim - first] = int((~mask).sum())
    node.args, node.kwargs = (source, first, sizes), {}
    return sizes != before


def _cut_parts(
    node: fx.Node, source: fx.Node, shrunk: dict[int, Tensor], found: Dependencies
) -> bool:
    dim = argument(node, 2, "dim", 0) % found.seen[source].dim()
    if dim not in shrunk:
        return False
    sizes = [part.shape[dim] for part in found.seen[node]]
    small = [int((~part).sum()) for part in shrunk[dim].split(sizes)]
    if name_of(node) == "chunk" and len(set(small)) == 1:
        return False
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (source, small, dim), {}
    return True


def _cut_slices(
    node: fx.Node, source: fx.Node, shrunk: dict[int, Tensor], found: Dependencies
) -> bool:
    entries: Any = node.args[1]
    given = entries if isinstance(entries, tuple) else (entries,)
    left = found.seen[source].dim() - sum(e is not None and e is not ... for e in given)
    index, dim = [], 0
    for entry in given:
        if isinstance(entry, slice) and dim in shrunk and (entry.start or entry.stop is not None):
            stays = (~shrunk[dim]).int()
            start = None if entry.start is None else int(stays[: entry.start].sum())
            stop = None if entry.stop is None else int(stays[: entry.stop].sum())
            entry = slice(start, stop)
        index.append(entry)
        dim += left if entry is ... else entry is not None
    changed = tuple(index) != given
    if changed:
        node.args = (source, tuple(index))
    return changed


def _hold_size(node: fx.Node, found: Dependencies, shrunk: Shrunk) -> bool:
    """A size that the forward computes with keeps its original value; layouts get new ones."""
    if not isinstance(found.seen[node], int) or not node.all_input_nodes or not node.users:
        return False
    source, name = node.all_input_nodes[0], name_of(node)
    if name == "size":
        dim = argument(node, 1, "dim")
    elif name == "getitem" and name_of(source) in ("getattr", "size"):
        source, dim = source.all_input_nodes[0], node.args[1]
    else:
        return False
    dims = shrunk.get(source)
    if not dims or not isinstance(dim, int) or dim % found.seen[source].dim() not in dims:
        return False
    for user in list(node.users):
        known = partial(_or_number, node, found.seen[node])
        given: Any = fx.node.map_arg((user.args, user.kwargs), known)
        user.args, user.kwargs = given
    return True


def _or_number(node: fx.Node, number: int, other: fx.Node) -> fx.Node | int:
    return number if other is node else other
