"""Cut channels out of a network: smaller tensors, the sizes that modules and the graph name.

In:   Dependencies, and the channels that go.
Out:  the index map of every tensor that shrinks; the model and its graph, cut in place.
Not:  values are only taken, never changed; nothing is proved here, compact.py runs both networks.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx, nn

from dcil_dsl.extras.compact.dead_channels import gone_along
from dcil_dsl.extras.compact.dependencies import Dependencies
from dcil_dsl.extras.compact.operations import Conv, ConvTransposed, argument, name_of

# dim -> the indices that stay; for the inner dim of a grouped convolution a list a group
Kept = dict[int, list]


def kept_indices(found: Dependencies, gone: Tensor) -> dict[str, Kept]:
    """For each tensor that shrinks the indices that stay, by dim."""
    kept: dict[str, Kept] = {}
    for axis in found.axes.values():
        stays = ~gone[axis.channels]
        if not stays.all():
            indices = [row.nonzero().flatten().tolist() for row in torch.atleast_2d(stays)]
            kept.setdefault(axis.key, {})[axis.dim] = indices if stays.dim() == 2 else indices[0]
    return kept


def gather(tensor: Tensor, kept: Kept) -> Tensor:
    """The part of a tensor that stays."""
    if not kept:
        return tensor.clone()
    return torch.cat([tensor[grid] for grid in _grids(tensor.shape, kept)])


def scatter(small: Tensor, kept: Kept, shape: torch.Size) -> Tensor:
    """The inverse of gather: the part at its places in a tensor of zeros."""
    if not kept:
        return small.clone()
    full = small.new_zeros(shape)
    grids = _grids(shape, kept)
    for grid, part in zip(grids, small.split([len(grid[0]) for grid in grids])):
        full[grid] = part
    return full


def _grids(shape: torch.Size, kept: Kept) -> list[tuple[Tensor, ...]]:
    """The indices that stay, as open grids: one, or one a group where the inner dim is grouped."""
    dims = [kept.get(dim, range(size)) for dim, size in enumerate(shape)]
    inner = next((dim for dim, indices in kept.items() if _is_nested(indices)), None)
    if inner is None:
        return [_open(dims)]
    size, grids = shape[0] // len(dims[inner]), []
    for group, indices in enumerate(dims[inner]):
        rows = [index for index in dims[0] if index // size == group]
        if rows:
            grids.append(_open([rows, *dims[1:inner], indices, *dims[inner + 1 :]]))
    return grids


def _open(dims: list) -> tuple[Tensor, ...]:
    rank = len(dims)
    return tuple(
        torch.as_tensor(indices, dtype=torch.int64).reshape([-1] + [1] * (rank - 1 - dim))
        for dim, indices in enumerate(dims)
    )


def _is_nested(indices: list | None) -> bool:
    return bool(indices) and isinstance(indices[0], list)


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


def _grouped(found: Dependencies):
    """Convolutions and group norms, whose count of groups may shrink."""
    for path, module in found.model.named_modules():
        if isinstance(module, Conv | nn.GroupNorm) and (f"{path}.weight", 0) in found.axes:
            yield path, module


def _groups(found: Dependencies, path: str, module: nn.Module, gone: Tensor) -> int:
    count = module.groups if isinstance(module, Conv) else module.num_groups
    stays = ~gone[found.axes[f"{path}.weight", 0].channels]
    return int(stays.reshape(count, -1).any(1).sum())


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


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


def _cut_node(node: fx.Node, found: Dependencies, shrunk: dict) -> bool:
    name = name_of(node)
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if name in ("view", "reshape", "expand") and shrunk.get(node):
        return _cut_shape(node, shrunk[node])
    if name == "unflatten" and shrunk.get(node):
        return _cut_unflattened(node, shrunk[node], found)
    if name in ("chunk", "split") and shrunk.get(source):
        return _cut_parts(node, source, shrunk[source], found)
    if name == "getitem" and shrunk.get(source):
        return _cut_slices(node, source, shrunk[source], found)
    return _hold_size(node, found, shrunk)


def _cut_shape(node: fx.Node, shrunk: dict[int, Tensor]) -> bool:
    packed = isinstance(node.args[1], tuple | list)
    sizes = list(node.args[1] if packed else node.args[1:])
    before = list(sizes)
    for dim, mask in shrunk.items():
        if sizes[dim] != -1:
            sizes[dim] = int((~mask).sum())
    node.args = (node.args[0], tuple(sizes)) if packed else (node.args[0], *sizes)
    return sizes != before


def _cut_unflattened(node: fx.Node, shrunk: dict[int, Tensor], found: Dependencies) -> bool:
    source = node.args[0]
    first = argument(node, 1, "dim") % found.seen[source].dim()
    before = list(argument(node, 2, "sizes"))
    sizes = list(before)
    for dim, mask in shrunk.items():
        if 0 <= dim - first < len(sizes) and sizes[dim - first] != -1:
            sizes[dim - first] = int((~mask).sum())
    node.args, node.kwargs = (source, first, sizes), {}
    return sizes != before


def _cut_parts(node: fx.Node, source: fx.Node, shrunk: dict, found: Dependencies) -> bool:
    dim = argument(node, 2, "dim", 0) % found.seen[source].dim()
    if dim not in shrunk:
        return False
    sizes = [part.shape[dim] for part in found.seen[node]]
    small = [int((~part).sum()) for part in shrunk[dim].split(sizes)]
    if name_of(node) == "chunk" and len(set(small)) == 1:
        return False
    node.op, node.target, node.args, node.kwargs = (
        "call_function",
        torch.split,
        (
            source,
            small,
            dim,
        ),
        {},
    )
    return True


def _cut_slices(node: fx.Node, source: fx.Node, shrunk: dict, found: Dependencies) -> bool:
    given = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
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


def _hold_size(node: fx.Node, found: Dependencies, shrunk: dict) -> bool:
    """A size that the forward computes with stays the original's; layouts were given new ones."""
    if not isinstance(found.seen[node], int) or not node.all_input_nodes or not node.users:
        return False
    source, name = node.all_input_nodes[0], name_of(node)
    if name == "size":
        dim = argument(node, 1, "dim")
    elif name == "getitem" and name_of(source) in ("getattr", "size"):
        source, dim = source.args[0], node.args[1]
    else:
        return False
    dims = shrunk.get(source)
    if not dims or not isinstance(dim, int) or dim % found.seen[source].dim() not in dims:
        return False
    for user in list(node.users):
        known = partial(_or_number, node, found.seen[node])
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), known)
    return True


def _or_number(node: fx.Node, number: int, other: fx.Node) -> fx.Node | int:
    return number if other is node else other
