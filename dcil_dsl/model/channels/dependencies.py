"""Which slices of which tensors stay or go together: the groups.

In:   numbers that are given to slices, and the places where two of them meet.
Out:  Dependencies: one number for each group, its channel, on every tensor of the network.
Not:  what meets where is found by rules.py; no weight is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.model.channels.operations import JOINING, Kind, Weighing, kind_of, name_of

FIXED = 0  # the number of everything that is not a channel of a layer: inputs, batch, places


@dataclass(frozen=True)
class Axis:
    """One dim of a parameter or buffer.

    channels  (size,) the channel of each index; (groups, size) where a grouped convolution's
              inner dim means other channels in each group
    """

    key: str
    dim: int
    channels: Tensor


@dataclass(frozen=True)
class Read:
    """A layer whose rows add up its columns. columns (groups, I), rows (groups, O)."""

    weighing: Weighing
    columns: Tensor
    rows: Tensor


@dataclass
class Dependencies:
    """What shrinks with what.

    channels    for each node the number of each element: a tensor that broadcasts to the
                node's shape, of size 1 in dims along which the number does not change
    seen        for each node what it gave for the example: meta tensors, sizes, numbers
    rows        for each weight the channel of each of its outputs, (outputs,)
    sums        nodes that add up all channels of a source, with the source: a channel can go where
                it is always zero
    rigid       dims of a node that must keep their size, whatever their channels do
    fixed       channels that cannot go, with the reason
    opaque      modules that are one call each, with the reason
    first       for each name of a tensor its first, under which `axes` has it
    joins       an edge for each two numbers that met; the groups are its components
    """

    graph: fx.Graph
    model: nn.Module
    seen: dict[fx.Node, Any]
    opaque: Mapping[str, str] = field(default_factory=dict)
    channels: dict[fx.Node, Any] = field(default_factory=dict)
    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    rows: dict[str, Tensor] = field(default_factory=dict)
    sums: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    rigid: dict[fx.Node, set[int]] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    joins: nx.Graph = field(default_factory=nx.Graph)
    num_channels: int = 1

    def __post_init__(self) -> None:
        self.first = first_names(self.model)

    def kind(self, node: fx.Node) -> Kind:
        """What a node does to channels; nothing is known of a module that was kept opaque."""
        if node.op == "call_module" and node.target in self.opaque:
            return Kind.UNKNOWN
        kind = kind_of(node, self.model)
        if kind is Kind.MOVE and name_of(node) not in JOINING:
            others = node.all_input_nodes[1:]
            if any(isinstance(self.seen[other], Tensor) for other in others):
                return Kind.UNKNOWN  # a tensor of indices: where things go depends on its values
        return kind

    def tensors(self) -> Iterable[tuple[fx.Node, Tensor]]:
        """Every node that gives one tensor, with its channels."""
        return ((n, c) for n, c in self.channels.items() if isinstance(self.seen[n], Tensor))

    def fresh(self, count: int) -> Tensor:
        """New channels, (count,)."""
        start = self.num_channels
        self.num_channels += count
        return torch.arange(start, start + count)

    def fix(self, channels: Tensor, reason: str) -> None:
        """These cannot go; the first reason stands."""
        for channel in torch.unique(channels).tolist():
            if channel != FIXED:
                self.fixed.setdefault(channel, reason)

    def join(self, ours: Tensor, theirs: Tensor, place: str) -> None:
        """What meets, element by element, is one channel; what meets no channel is fixed."""
        ours, theirs = torch.broadcast_tensors(ours, theirs)
        differ = ours != theirs
        pairs = torch.unique(torch.stack([ours[differ], theirs[differ]], dim=1), dim=0)
        lonely = (pairs == FIXED).any(dim=1)
        self.fix(pairs[lonely], f"{place} joins them with values of no layer")
        self.joins.add_edges_from(pairs[~lonely].tolist())

    def axis(self, key: str, dim: int, channels: Tensor, place: str) -> None:
        """The channels of a parameter's dim; a second use of it joins the first."""
        key = self.first[key]
        known = self.axes.setdefault((key, dim), Axis(key, dim, channels)).channels
        if known is not channels:
            self.join(known, channels, place)

    def with_one_number_each(self) -> Dependencies:
        """The smallest number of its group for each channel; what is fixed fixes its group."""
        number = torch.arange(self.num_channels)
        for group in nx.connected_components(self.joins):
            number[list(group)] = min(group)

        def renumber(channels: Tensor) -> Tensor:
            return number[channels]

        fixed: dict[int, str] = {}
        for channel, reason in self.fixed.items():
            fixed.setdefault(int(number[channel]), reason)
        return replace(
            self,
            channels=pytree.tree_map_only(Tensor, renumber, self.channels),
            axes={p: Axis(a.key, a.dim, renumber(a.channels)) for p, a in self.axes.items()},
            rows={key: renumber(channels) for key, channels in self.rows.items()},
            reads=[Read(r.weighing, renumber(r.columns), renumber(r.rows)) for r in self.reads],
            fixed=fixed,
        )


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a tensor its first: tied weights are one tensor under several names."""
    names: dict[int, str] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: names.setdefault(id(tensor), name) for name, tensor in tensors}
