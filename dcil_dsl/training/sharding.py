"""Weights, masks and all that goes with them in parts, one on each rank (`--shard`).

In:   a dual graph with whole weights, the Ranks.
Out:  the same graph on this rank's rows of each weight; the rows and the whole of a tensor.
Not:  no optimiser, average or selection of its own: all that is done to a weight entry by entry
      is done to its rows. What a recipe may not ask of parts is in shardable.py.

The parts are FSDP2's (Zhao et al. 2023, arXiv:2304.11277): DTensor's Shard(0), all-gathered where
a layer computes, gradients reduce-scattered. fully_shard itself hooks into the calls of modules,
and here weights are values of the graph: so the gathering is a node of the graph too, after the
view. What is gathered is one path's view of one layer, masked already:

    w -> split_weight -> view_p -> conv_p   ==>   rows -> split_weight -> rows of view_p
                                                       -> gather -> view_p -> conv_p

No mask ever leaves its rank, nor a score, a reserve or a scale, which are cut as their weights are:
what rows do not tell by themselves, as the mean of a channel or the size that a threshold has, the
ranks exchange as counts, sums and vectors of units (masking/rows.py). A gathered view lives as long
as its layer computes; the backward pass gathers it again (Regather). So each path's view crosses
the wire twice and its gradient once: two paths move what FSDP moves for two models. That gradient
is of the whole batch when it comes to split_weight: scores that add it up are those of one process.
"""

from __future__ import annotations

import copy
import logging
import warnings
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from dcil_dsl.compiler.dynamics import buffers_of
from dcil_dsl.masking.apply import apply_layer, apply_opaque
from dcil_dsl.masking.rows import Parts
from dcil_dsl.masking.split import share_gradient, split_weight
from dcil_dsl.masking.views import read_stored
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.shardable import check_shardable, rows_of_a_rank

if TYPE_CHECKING:  # torch.distributed.tensor takes a second to import, which others need not wait
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# What autocast computes in its own type; embeddings, norms and sums it leaves as they are.
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d")
LEAST_NUMBER = 1024  # of weights in a parameter that is parted; a smaller one is on every rank


class Layout:
    """How one parameter lies on the ranks: its rows, cut as evenly as torch.chunk does.

    start  which row is this rank's first; where it has none, the number of all
    """

    def __init__(self, whole: Tensor, meshes: Mapping[str, DeviceMesh]):
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        self.meshes, self.shape = meshes, whole.shape
        self.stride = torch.empty(whole.shape, device="meta").stride()
        self.by_rows, self.everywhere, self.mean = [Shard(0)], [Replicate()], [Partial("avg")]
        self.from_local = DTensor.from_local
        mesh = meshes["cpu"]
        self.most = rows_of_a_rank(len(whole), mesh.size())
        self.start = min(mesh.get_local_rank() * self.most, len(whole))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows, in memory of their own."""
        own = whole[self.start : self.start + self.most]
        return own.clone(memory_format=torch.contiguous_format)

    def distributed(self, own: Tensor) -> DTensor:
        """The whole as PyTorch's checkpoints and collectives know it."""
        return self.from_local(
            own.contiguous(),
            self.meshes[own.device.type],
            self.by_rows,
            run_check=False,
            shape=self.shape,
            stride=self.stride,
        )

    def whole(self, own: Tensor) -> Tensor:
        """All rows, on every rank; the gradient that comes back is the mean of all ranks'."""
        gathered = self.distributed(own).redistribute(placements=self.everywhere)
        return gathered.to_local(grad_placements=self.mean)

    @torch.no_grad()
    def whole_bits(self, own: Tensor) -> Tensor:
        """`whole` for masks too: not every backend sends booleans."""
        if own.dtype is torch.bool:
            return self.whole(own.to(torch.uint8)).bool()
        return self.whole(own)

    def gather(self, own: Tensor, is_multiplied: bool) -> Tensor:
        """`whole`, not kept for the backward pass; of what is multiplied by, in autocast's type.

        What torch.compile makes of it gathers again there, as checkpointed activations are computed
        again: nothing that Python keeps beside a graph is seen by it.
        """
        device = own.device.type
        is_cast = is_multiplied and own.dim() > 1 and own.dtype is not torch.float64
        if is_cast and torch.is_autocast_enabled(device):
            own = own.to(torch.get_autocast_dtype(device))  # half of the traffic
        if torch.compiler.is_compiling():
            return checkpoint(self.whole, own, use_reentrant=False, context_fn=_gathered_again)
        whole = self.whole(own)
        Regather.note(whole, self, own.detach())
        return whole


def _gathered_again():
    """Of what torch.compile makes of a gathering, its backward pass keeps nothing."""
    return create_selective_checkpoint_contexts(_nothing_kept)


def _nothing_kept(context, operation, *arguments, **settings) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_RECOMPUTE


class Regather:
    """What autograd keeps in place of a gathered view: how to gather it again."""

    alive: dict[int, tuple[Layout, Tensor]] = {}  # by the address of a gathered view's memory

    def __init__(self, view: Tensor, layout: Layout, own: Tensor):
        self.layout, self.own = layout, own
        self.place = view.size(), view.stride(), view.storage_offset()

    @classmethod
    def note(cls, whole: Tensor, layout: Layout, own: Tensor) -> None:
        address = whole.untyped_storage().data_ptr()
        cls.alive[address] = layout, own
        weakref.finalize(whole, cls.alive.pop, address, None)

    @classmethod
    def pack(cls, saved: Tensor) -> Tensor | Regather:
        known = cls.alive.get(saved.untyped_storage().data_ptr())
        return saved if known is None else cls(saved, *known)

    @staticmethod
    @torch.no_grad()
    def unpack(kept: Tensor | Regather) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return kept.layout.whole(kept.own).as_strided(*kept.place)

    @classmethod
    def hooks(cls) -> AbstractContextManager:
        """Within it, a forward keeps no gathered view for its backward."""
        return torch.autograd.graph.saved_tensors_hooks(cls.pack, cls.unpack)


class Shards:
    """The layouts of a dual graph whose weights are in parts, by the name in its state."""

    def __init__(self, layouts: dict[str, Layout], ranks: Ranks, graphs: dict):
        self.layouts, self.ranks = layouts, ranks
        self.graphs = graphs  # of the dual graph with whole weights

    def of(self, name: str) -> Layout | None:
        """The layout of a parameter or of what lies beside it; None: it is whole."""
        return self.layouts.get(name)

    def in_checkpoint(self, key: str) -> Layout | None:
        """The layout of a tensor by its name there: "optimizer/fc.weight/momentum_buffer"."""
        part, _, name = key.partition("/")
        if part != "optimizer":
            # Gradients that an integrator keeps, or a late phase gathers.
            return self.of(name.removeprefix("previous/").removeprefix("late/sum/"))
        name, _, entry = name.rpartition("/")
        return None if entry == "step" else self.of(name)

    def own(self, key: str, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor of a checkpoint."""
        layout = self.in_checkpoint(key)
        return whole if layout is None else layout.own(whole)

    @torch.no_grad()
    def average_others(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """The mean over the ranks of the gradients of what is whole on each."""
        grads = (p.grad for n, p in parameters.items() if not self.of(n))
        self.ranks.average(grad for grad in grads if grad is not None)

    @torch.no_grad()
    def clip(self, parameters: Mapping[str, nn.Parameter], most: float) -> None:
        """torch's clip_grad_norm_ over the whole of all gradients."""
        grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        parted = [g for name, g in grads.items() if self.of(name)]
        others = [g for name, g in grads.items() if not self.of(name)]
        square = self.ranks.sum(_square(parted, grads)) + _square(others, grads)
        factor = (most / (square.sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(grads.values()), factor)


def shard(dual: nn.Module, ranks: Ranks, device: torch.device) -> Shards:
    """Cut the weights and masks of `dual` in place; only this rank's rows stay.

    InputError as check_shardable.
    """
    from torch.distributed.device_mesh import init_device_mesh

    check_shardable(dual.plan, ranks)
    # Of torch to itself.
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
            kinds = _kinds_beside(dual.plan, group, name)
            layouts |= _cut_beside(dual, name, ends_of[name], rows[name], kinds)
    shards = Shards(layouts, ranks, dual.graphs)
    dual.run_graphs(
        {
            key: gather_weights(copy.deepcopy(graph), dual, where)
            for key, graph in dual.graphs.items()
        }
    )
    dual.parts = Parts(ranks, rows)
    return shards


def _is_news(record: logging.LogRecord) -> bool:
    return "Detected that context_fn is passed" not in record.getMessage()


def _kinds_beside(plan: Plan, group: Group, parameter: str) -> list[str]:
    """What lies beside a pruned weight and has its rows.

    A threshold is one number. A scale is one number a filter: where filters are no rows, whole.
    """
    axes = {layer.parameter: layer.out_axis for layer in plan.layers}
    kinds = ["mask", *buffers_of(group, plan), *["score"] * (group.kept_score is not None)]
    stay = {"threshold"} | ({"scale"} if axes[parameter] != 0 else set())
    return [kind for kind in kinds if kind not in stay]


def _cut_beside(
    dual: nn.Module, name: str, ends: list[str], layout: Layout, kinds: list[str]
) -> dict[str, Layout]:
    """Cut the buffers beside a weight in place; their layouts, by each name they have in the
    state: a module that has two names gives them two."""
    owner, _, last = name.rpartition(".")
    module, cut = dual.get_submodule(owner), {}
    for kind in kinds:
        whole = module._buffers[f"{last}_{kind}"]
        own = layout if whole.shape == layout.shape else Layout(whole, layout.meshes)
        module._buffers[f"{last}_{kind}"] = own.own(whole)
        for end in ends:
            path, _, same = end.rpartition(".")
            if same == last and dual.get_submodule(path) is module:
                cut[f"{end}_{kind}"] = own
    return cut


def make_scaler(device: torch.device, enabled: bool, shards: Shards | None) -> torch.amp.GradScaler:
    """What scales losses in fp16.

    In parts a gradient may be infinite on one rank alone. All skip the step then, and lower the
    scale, as they tell each other in unscale_, which is to be called at each step.
    """
    if shards is None or not enabled:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type)


@torch.no_grad()
def unshard(dual: nn.Module, shards: Shards) -> None:
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
        dual.parts = None
        dual.run_graphs(shards.graphs)


def gather_weights(graph: fx.Graph, model: nn.Module, where: Mapping[str, str]) -> fx.Graph:
    """Put a gathering before each path's first use of a weight or of its view.

    where  parameter -> the attribute of the dual graph that holds its Layout
    """
    _expose_private(graph, model)
    layout_of: dict[fx.Node, str] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target in where:
            layout_of[node] = where[node.target]
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
    owner, tensors = model.get_submodule(user.args[0].target), user.args[1]
    names = [name for name, tensor in tensors.items() if tensor is weight]
    owners = [owner.get_submodule(name.rpartition(".")[0]) for name in names]
    return bool(owners) and all(isinstance(module, LAYERS) for module in owners)


def _keeps_rows(node: fx.Node) -> bool:
    """Whether the node makes, of the rows of a weight, the rows of its views."""
    if node.target in (split_weight, share_gradient, read_stored):
        return True
    first = node.args[0]
    return first.op == "call_function" and first.target is split_weight


def _expose_private(graph: fx.Graph, model: nn.Module) -> None:
    """Hand modules that belong to one path their weights as values, as expose_weights does."""
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
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


def _square(grads: list[Tensor], like: Mapping[str, Tensor]) -> Tensor:
    if not grads:
        first = next(iter(like.values()))
        return first.new_zeros(())
    wide = (grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads)
    return torch.stack([grad.square().sum() for grad in wide]).sum()
