"""The channels of a network: one rule for each kind of operation.

In:   a graph for evaluation, the model it names into, example inputs.
Out:  Dependencies: every slice of a layer's rows has a number, its channel; slices that meet in an
      addition, a norm or an attention head have one number.
Not:  no weight is looked at: what is zero, and what a channel's value is, others ask.

The numbers are carried through the graph as tensors that stand for the values, so a view, a
concatenation or a flattening needs no rule of its own: it is done to the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.model.channels.dependencies import Dependencies, Read
from dcil_dsl.model.channels.operations import (
    JOINING,
    Kind,
    argument,
    mixed_dims,
    name_of,
    norming_of,
    observe,
    replay,
    told,
    vector_along,
    weighing_of,
)


def find_dependencies(
    graph: fx.Graph,
    model: nn.Module,
    inputs: tuple[Any, ...],
    whole: Mapping[str, str] | None = None,
    *,
    joined: bool = True,
) -> Dependencies:
    """Number the channels of a graph and join those that depend on each other.

    inputs  of the graph, in order
    whole   modules that tracing kept opaque, with the reason
    joined  give one number to all that met; else `joins` says what met
    """
    found = Dependencies(graph, model, observe(graph, model, inputs), whole or {})
    walk = _Walk(found)
    for node in graph.nodes:
        found.channels[node] = walk.visit(node)
    for key, reason in walk.held.items():  # a module kept opaque may share a weight with a layer
        for axis in [axis for axis in found.axes.values() if axis.key == key]:
            found.fix(axis.channels, reason)
    return found.with_one_number_each() if joined else found


class _Walk:
    """One rule for each kind of node."""

    def __init__(self, found: Dependencies) -> None:
        self.found = found
        self.held: dict[str, str] = {}  # tensors of modules that are not understood

    def visit(self, node: fx.Node) -> Any:
        found = self.found
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(found.seen[node])):
            self._size(node)
            return found.seen[node]
        match found.kind(node):
            case Kind.TENSOR:
                return self._tensor(node)
            case Kind.POINTWISE:
                return self._pointwise(node)
            case Kind.MOVE:
                return self._move(node)
            case Kind.ALONG:
                return self._along(node)
            case Kind.BATCH_NORM | Kind.GROUP_NORM:
                return self._norm(node)
            case Kind.WEIGH:
                return self._weigh(node)
            case Kind.ATTEND:
                return self._attend(node, node.args[:3])
            case Kind.MATMUL:
                return self._matmul(node)
            case Kind.OUTPUT:
                return self._unknown(node, "they are what the model returns")
            case Kind.INPUT:
                return _nothing(found.seen[node])
        return self._unknown(node)

    def join(self, ours: Tensor, theirs: Tensor, node: fx.Node) -> None:
        self.found.join(ours, theirs, told(node, self.found.model))

    def axis(self, key: str, dim: int, channels: Tensor, node: fx.Node) -> None:
        self.found.axis(key, dim, channels, told(node, self.found.model))

    def vector(self, source: fx.Node, dim: int, node: fx.Node) -> Tensor:
        """The channel of each index along a dim, (size,): one for all that lies at that index."""
        channels: Tensor = self.found.channels[source]
        size = self.found.seen[source].shape[dim]
        known = vector_along(channels, dim, size)
        if known is not None:
            return known
        first = channels
        for other in _varying(channels) - {dim % channels.dim()}:
            first = first.narrow(other, 0, 1)
        self.join(first, channels, node)
        return first.reshape(-1).expand(size)

    def rows(self, key: str, dim: int, count: int) -> Tensor:
        """The channels of a parameter's dim, (count,): known from its first use, or new."""
        known = self.found.axes.get((self.found.first[key], dim))
        return self.found.fresh(count) if known is None else known.channels.reshape(-1)

    def _tensor(self, node: fx.Node) -> Any:
        seen = self.found.seen[node]
        if not isinstance(seen, Tensor) or sum(size > 1 for size in seen.shape) != 1:
            return _nothing(seen)
        dim = max(range(seen.dim()), key=lambda d: seen.shape[d])
        channels = self.rows(str(node.target), dim, seen.shape[dim])
        self.axis(str(node.target), dim, channels, node)
        return _at(channels, dim, seen.dim())

    def _pointwise(self, node: fx.Node) -> Any:
        seen, found = self.found.seen[node], self.found
        result = None
        for source in node.all_input_nodes:
            shape = found.seen[source]
            if not isinstance(shape, Tensor):
                continue
            missing = (1,) * (seen.dim() - shape.dim())
            channels = found.channels[source].reshape(*missing, *found.channels[source].shape)
            full = (*missing, *shape.shape)
            if result is None:
                result, size = channels, full
                continue
            here, there = _varying(channels), _varying(result)
            if all(full[d] == seen.shape[d] for d in there) and all(
                size[d] == seen.shape[d] for d in here
            ):
                self.join(result, channels, node)
                both = torch.broadcast_tensors(result, channels)
                result = both[0]
            elif here and there:
                return self._unknown(node)
            elif here:
                result = channels
            size = tuple(map(max, size, full))
        module = found.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return self._slopes(node)
        return _nothing(seen) if result is None else result

    def _move(self, node: fx.Node) -> Any:
        found = self.found
        name = name_of(node)
        source = node.all_input_nodes[0]
        if isinstance(found.channels[source], Tensor):
            varying = _varying(found.channels[source])
            if dims := self._picked(node, name, varying):
                found.rigid.setdefault(source, set()).update(dims & varying)
            if name in ("roll", "flip", "narrow", "movedim") and varying:
                return self._unknown(node)
        result = replay(node, found.model, found.seen, found.channels)
        if name not in JOINING:
            return result
        dim = argument(node, 1, "dim", 0) % found.seen[node].dim()
        if name == "stack":
            found.rigid.setdefault(node, set()).add(dim)
        parts = [found.channels[source] for source in node.all_input_nodes]
        if result.shape[dim] > 1 and (name == "stack" or all(p.shape[dim] == 1 for p in parts)):
            first = result.narrow(dim, 0, 1)
            if _varying(first):  # along another axis: what lies side by side shrinks together
                self.join(first, result, node)
                return first
        return result

    def _picked(self, node: fx.Node, name: str, varying: set[int]) -> set[int]:
        """Dims of which single indices are taken: their size is part of the program."""
        source = self.found.seen[node.all_input_nodes[0]]
        if name == "unbind":
            return {argument(node, 1, "dim", 0) % source.dim()}
        if name != "getitem":
            return set()
        dims, dim = set(), 0
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        left = source.dim() - sum(entry is not None and entry is not ... for entry in index)
        for entry in index:
            if entry is ...:
                dim += left
            elif entry is not None:
                if not _is_stretch(entry):
                    dims.add(dim)
                dim += 1
        return dims

    def _along(self, node: fx.Node) -> Any:
        found, source = self.found, node.all_input_nodes[0]
        seen = found.seen[node]
        channels = found.channels[source]
        dims = mixed_dims(node, found.model, found.seen[source].dim())
        if dims is None or not isinstance(seen, Tensor):
            return self._unknown(node, f"{told(node, found.model)} mixes them")
        if mixed := dims & _varying(channels):
            if mixed == _varying(channels):
                return self._all_mixed(node, source)
            first = channels
            for dim in mixed:  # a sum over parts of channels that are alike: as an addition is
                first = first.narrow(dim, 0, 1)
            self.join(first, channels, node)
            channels = first
        for other in node.all_input_nodes[1:]:
            self.found.fix(found.channels[other], f"{told(node, found.model)} reads it")
        if seen.dim() == channels.dim():
            return channels
        return channels.reshape([s for d, s in enumerate(channels.shape) if d not in dims])

    def _all_mixed(self, node: fx.Node, source: fx.Node) -> Any:
        """A sum over all channels loses nothing by one that is zero; others would change."""
        if name_of(node) != "sum":
            return self._unknown(node, f"{told(node, self.found.model)} mixes them")
        self.found.sums.append((node, source))
        return _nothing(self.found.seen[node])

    def _norm(self, node: fx.Node) -> Any:
        found, norm = self.found, norming_of(node, self.found.model)
        assert norm is not None
        vector = self.vector(norm.source, 1, node)
        if norm.groups is not None:
            groups = vector.reshape(norm.groups, -1)
            self.join(groups[:, :1], groups, node)
        for key in norm.keys:
            self.axis(key, 0, vector, node)
        return found.channels[norm.source]

    def _slopes(self, node: fx.Node) -> Any:
        """PReLU with a slope for each channel."""
        source = node.all_input_nodes[0]
        self.axis(f"{node.target}.weight", 0, self.vector(source, 1, node), node)
        return self.found.channels[source]

    def _weigh(self, node: fx.Node) -> Any:
        found = self.found
        call = weighing_of(node, found.model)
        assert call is not None
        seen, source = found.seen[node], found.seen[call.source]
        axis = call.axis % seen.dim()
        if seen.dim() != source.dim():
            return self._unknown(node)
        columns = self.vector(call.source, axis, node)
        count, groups = seen.shape[axis], call.groups
        inner, outer = (0, 1) if call.transposed else (1, 0)
        rows = self.rows(call.weight, outer, count)
        found.rows[found.first[call.weight]] = rows
        columns, grouped = columns.reshape(groups, -1), rows.reshape(groups, -1)
        if columns.shape[1] == 1 and groups > 1:  # depthwise: a column and its rows are one
            self.join(columns, grouped, node)
        else:
            found.reads.append(Read(call, columns, grouped))
        by_dim = {outer: grouped, inner: columns}
        for dim, channels in by_dim.items():
            nested = groups > 1 and dim == 1
            if not nested:
                self.axis(call.weight, dim, channels.reshape(-1), node)
            elif channels.shape[1] > 1:
                self.axis(call.weight, dim, channels, node)
        if call.bias is not None:
            self.axis(call.bias, 0, rows, node)
        return _at(rows, axis, seen.dim())

    def _attend(self, node: fx.Node, sources: Sequence[Any]) -> Any:
        """A head is one channel: what makes its queries, keys and values goes together."""
        found = self.found
        inputs = [found.channels[source] for source in sources]
        heads = {found.seen[source].shape[:-2] for source in sources}
        rank = found.seen[node].dim()
        free = {rank - 1, rank - 3} if rank > 3 else set()
        if (
            len(heads) > 1
            or len(node.all_input_nodes) > 3
            or any(_varying(c) - free for c in inputs)
            or any(c.shape[-3:-2] == (1,) and _varying(c) for c in inputs)
        ):
            return self._unknown(node)
        if not any(map(_varying, inputs)):
            return _nothing(found.seen[node])
        first = inputs[-1][..., :1]
        for channels in inputs:
            self.join(first, channels, node)
        return inputs[-1]

    def _matmul(self, node: fx.Node) -> Any:
        """Only products of heads: (B, H, N, D) @ (B, H, D, M), each head for itself."""
        found = self.found
        ours, theirs = argument(node, 0, "input"), argument(node, 1, "other")
        if found.seen[ours].dim() != found.seen[theirs].dim() or found.seen[node].dim() != 4:
            return self._unknown(node)
        one, other = found.channels[ours], found.channels[theirs]
        if not _varying(one) and not _varying(other):
            return _nothing(found.seen[node])
        if one.shape[1] == 1 or other.shape[1] == 1 or one.shape[0] > 1 or other.shape[0] > 1:
            return self._unknown(node)
        first = one[..., :1, :1]
        self.join(first, one, node)
        self.join(first, other, node)
        return first

    def _size(self, node: fx.Node) -> None:
        """Reading the size of one dim is understood; a whole shape fixes the channels in it."""
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return
        source, name = node.all_input_nodes[0], name_of(node)
        if not isinstance(self.found.seen[source], Tensor):
            return
        whole = name == "getattr" and node.args[1] == "shape"
        whole |= name == "size" and argument(node, 1, "dim") is None
        if not whole and name != "numel":
            return
        varying = _varying(self.found.channels[source])
        rank = self.found.seen[source].dim()
        for user in node.users:
            index = user.args[1] if name_of(user) == "getitem" else slice(None)
            read = range(rank)[index] if isinstance(index, slice | int) else range(rank)
            if not isinstance(read, int) and varying & set(read):
                reason = f"the forward reads the shape of {told(source, self.found.model)}"
                self.found.fix(self.found.channels[source], reason)

    def _unknown(self, node: fx.Node, reason: str | None = None) -> Any:
        found, place = self.found, told(node, self.found.model)
        if node.op == "call_module":
            kept = found.opaque.get(str(node.target))
            reason = reason or (kept and f"{place} is kept opaque: {kept}")
            for name, _ in found.model.get_submodule(str(node.target)).named_parameters():
                self.held[found.first[f"{node.target}.{name}"]] = reason or place
        reason = reason or f"{place} is not one of the operations understood"
        for source in node.all_input_nodes:
            for channels in pytree.tree_leaves(found.channels[source]):
                if isinstance(channels, Tensor):
                    found.fix(channels, reason)
        return _nothing(found.seen[node])


def _nothing(seen: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda t: torch.zeros((1,) * t.dim(), dtype=torch.int64), seen
    )


def _at(channels: Tensor, dim: int, rank: int) -> Tensor:
    return channels.reshape([-1 if d == dim else 1 for d in range(rank)])


def _varying(channels: Tensor) -> set[int]:
    return {dim for dim, size in enumerate(channels.shape) if size > 1}


def _is_stretch(entry: object) -> bool:
    """Whether an index is a slice of neighbours between two known places."""
    if not isinstance(entry, slice) or entry.step not in (None, 1):
        return False
    return all(place is None or _is_count(place) for place in (entry.start, entry.stop))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0
