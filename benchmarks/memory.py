"""The most memory that a training step takes at a time.

In:   a function that takes one step, the device, what lives longer than the step.
Out:  bytes: on a GPU as torch's allocator counts them, on a CPU by looking at every tensor made.
Not:  on a CPU no memory that kernels take for themselves, and nothing of compiled code.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is open.

    `most`: the most of them that were alive at a time. A storage counts once, whatever looks at
    it, from the operation that made it until nobody holds it.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return made

    def _meet(self, storage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._part, storage.nbytes())

    def _part(self, size: int) -> None:
        self.now -= size


def peak_of(step: Callable[[], object], device: torch.device, lasting: Iterable[Tensor]) -> int:
    """The most bytes at a time in one step: of `lasting` (weights, statistics, the optimizer's
    state, the batch) and of what the step makes. What else lies on the device does not count.
    """
    gc.collect()
    lasting = list(lasting)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in lasting}
    own = sum(storage.nbytes() for storage in storages.values())
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + own
    with Alive(lasting) as alive:
        step()
    return alive.most + own
