"""Weights, masks and all that has their rows in parts, one on each rank (`--shard`).

In:   a dual graph with whole weights, the Ranks.
Out:  the same graph on this rank's rows of each weight; the rows and the whole of a tensor.
Not:  no optimizer, average or selection for rows: what changes a weight entry by entry changes
      its rows. What a recipe may not ask of parts is in refusals.py.

The parts are FSDP2's (Zhao et al. 2023, arXiv:2304.11277): DTensor's Shard(0), all-gathered where
a layer computes, gradients reduce-scattered. fully_shard itself hooks into the calls of modules,
and here weights are values of the graph: so the gathering is a node of the graph too, after the
view. What is gathered is one path's view of one layer, masked already:

    w -> split_weight -> view_p -> conv_p   ==>   rows -> split_weight -> rows of view_p
                                                       -> gather -> view_p -> conv_p

No mask ever leaves its rank, nor a score, a reserve or a scale, which are cut as their weights are:
what a rank cannot compute from its rows, as the mean of a channel or a threshold, the ranks
exchange as counts, sums and vectors of units (rows.py). A gathered view lives as long
as its layer computes; the backward pass gathers it again (Regather). So each path's view crosses
the wire twice and its gradient once: two paths move what FSDP moves for two models. That gradient
is of the whole batch at split_weight: scores that add it up are those of one process.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.weight_state import buffers_of
from dcil_dsl.extras.sharding.graph import gather_weights
from dcil_dsl.extras.sharding.layout import Layout
from dcil_dsl.extras.sharding.refusals import check_shardable
from dcil_dsl.extras.sharding.rows import RowPlacement
from dcil_dsl.masking.placement import ALL_ROWS
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.training.distributed import Ranks

LEAST_NUMBER = 1024  # of weights in a parameter that is parted; a smaller one is on every rank


class Shards(RowPlacement):
    """The layouts of a dual graph whose weights are in parts, by the name in its state.

    graphs  of the dual graph with whole weights
    """

    def __init__(
        self,
        layouts: dict[str, Layout],
        ranks: Ranks,
        graphs: dict[tuple[bool, int], fx.Graph],
        rows: Mapping[str, Layout],
    ):
        super().__init__(ranks, rows)
        self.layouts, self.ranks, self.graphs = layouts, ranks, graphs

    def holds_part(self, name: str) -> bool:
        return name in self.layouts

    def restore(self, dual: Dual) -> None:
        unshard(dual, self)

    def of(self, name: str) -> Layout | None:
        """The layout of a parameter or of what has its rows; None: it is whole."""
        return self.layouts.get(name)

    def in_checkpoint(self, key: str, tensor: Tensor) -> Layout | None:
        """The layout of a tensor by its name there: "optimizer/fc.weight/momentum_buffer",
        "memory/previous/fc.weight". One of fewer dimensions, a count, is whole."""
        parts = key.split("/")
        layout = self.of(parts[1] if parts[0] == "optimizer" and parts[1:] else parts[-1])
        return layout if layout is not None and len(layout.shape) == tensor.dim() else None

    def own(self, key: str, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor of a checkpoint."""
        layout = self.in_checkpoint(key, whole)
        return whole if layout is None else layout.own(whole)


def shard(dual: Dual, ranks: Ranks, device: torch.device) -> Shards:
    """Cut the weights and masks of `dual` in place; only this rank's rows stay.

    InputError as check_shardable.
    """
    from torch.distributed.device_mesh import init_device_mesh

    check_shardable(dual.plan, ranks)
    # Warnings that torch gives about its own code.
    warnings.filterwarnings("ignore", message="To construct DTensor")
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_news)
    meshes = {kind: init_device_mesh(kind, (ranks.count,)) for kind in {"cpu", device.type}}
    pruned = {name for group in dual.plan.groups for name in group.parameters}
    late = dual.plan.train.average
    copied = set(late.parameters if late is not None else ())  # a few, each several times
    names: dict[int, list[str]] = {}
    for name, parameter in dual.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    layouts: dict[str, Layout] = {}
    for ends in names.values():
        whole = dual.get_parameter(ends[0])
        is_small = whole.numel() < LEAST_NUMBER and not pruned & {*ends}
        if not whole.dim() or is_small or copied & {*ends}:
            continue
        layout = Layout(whole, meshes)
        own = nn.Parameter(layout.own(whole.detach()), requires_grad=whole.requires_grad)
        for name in ends:
            owner, _, last = name.rpartition(".")
            dual.get_submodule(owner)._parameters[last] = own
            layouts[name] = layout
    places = {id(layout): f"layout_{i}" for i, layout in enumerate(layouts.values())}
    for layout in layouts.values():
        dual.__dict__[places[id(layout)]] = layout
    where = {name: places[id(layout)] for name, layout in layouts.items()}
    rows = {name: layouts[name] for name in pruned}
    ends_of = {end: ends for ends in names.values() for end in ends}
    for group in dual.plan.groups:
        for name in group.parameters:
            kinds = _state_kinds(dual.plan, group, name)
            layouts |= _cut_states(dual, name, ends_of[name], rows[name], kinds)
    shards = Shards(layouts, ranks, dual.graphs, rows)
    dual.run_graphs(
        {
            key: gather_weights(copy.deepcopy(graph), dual, where)
            for key, graph in dual.graphs.items()
        }
    )
    dual.placement = shards
    return shards


def _is_news(record: logging.LogRecord) -> bool:
    return "Detected that context_fn is passed" not in record.getMessage()


def _state_kinds(plan: Plan, group: Group, parameter: str) -> list[str]:
    """The buffers of a pruned weight that have its rows.

    A threshold is one number. A scale is one number per filter, whole where filters are not rows.
    """
    axes = {layer.parameter: layer.out_axis for layer in plan.layers}
    kinds = ["mask", *buffers_of(group, plan), *["score"] * (group.buffered_score is not None)]
    stay = {"threshold"} | ({"scale"} if axes[parameter] != 0 else set())
    return [kind for kind in kinds if kind not in stay]


def _cut_states(
    dual: nn.Module, name: str, ends: list[str], layout: Layout, kinds: list[str]
) -> dict[str, Layout]:
    """Cut the buffers of a weight in place; their layouts, by each name they have in the
    state: a module that has two names gives them two."""
    owner, _, last = name.rpartition(".")
    module, cut = dual.get_submodule(owner), {}
    for kind in kinds:
        whole = module.get_buffer(f"{last}_{kind}")
        own = layout if whole.shape == layout.shape else Layout(whole, layout.meshes)
        module._buffers[f"{last}_{kind}"] = own.own(whole)
        for end in ends:
            path, _, same = end.rpartition(".")
            if same == last and dual.get_submodule(path) is module:
                cut[f"{end}_{kind}"] = own
    return cut


@torch.no_grad()
def unshard(dual: Dual, shards: Shards) -> None:
    """On the first rank, the graph with whole weights and masks, on the host. All ranks call it."""
    whole: dict[int, Tensor] = {}  # by the rows, so that what is tied stays so
    kept = []  # the rows, whose ids must not be taken by others
    for owner, module in dual.named_modules():
        for table in (module._parameters, module._buffers):
            for last, rows in table.items():
                layout = None if rows is None else shards.of(f"{owner}.{last}".lstrip("."))
                if layout is None:
                    continue
                kept.append(rows)
                if id(rows) not in whole:
                    bits = layout.whole_bits(rows).detach()
                    bits = bits.cpu() if shards.ranks.is_first else rows
                    is_weight = isinstance(rows, nn.Parameter)
                    whole[id(rows)] = nn.Parameter(bits, rows.requires_grad) if is_weight else bits
                table[last] = whole[id(rows)]
    if shards.ranks.is_first:
        dual.placement = ALL_ROWS
        dual.run_graphs(shards.graphs)
