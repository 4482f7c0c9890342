"""How one parameter is divided among the processes, and its gathering where a layer computes.

In:   this process's rows, or the whole.
Out:  the other; Regather, which keeps no gathered view for the backward pass.
Not:  which parameters are divided (shards.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from dcil_dsl.extras.sharding.refusals import rows_of_a_rank

if TYPE_CHECKING:  # importing torch.distributed.tensor takes a second: only with --shard
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


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
        """`whole`, not kept for the backward pass; a weight of a product comes in autocast's type.

        Compiled code gathers again there, as checkpointed activations are computed again: it does
        not see what Python keeps next to a graph.
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


def _gathered_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts in which the backward pass of a compiled gathering keeps nothing."""
    contexts = create_selective_checkpoint_contexts(_nothing_kept)
    forward, backward = contexts
    return forward, backward


def _nothing_kept(
    context: Any, operation: Any, *arguments: Any, **settings: Any
) -> CheckpointPolicy:
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
    def hooks(cls) -> AbstractContextManager[None]:
        """Within it, a forward keeps no gathered view for its backward."""
        return torch.autograd.graph.saved_tensors_hooks(cls.pack, cls.unpack)
