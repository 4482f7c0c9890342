"""The step of weights in parts: the graph exchanges their gradients, the step all others.

In:   a dual graph, cut by shards.py or cut here.
Out:  ShardedStep.
Not:  no gathering (layout.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.extras.sharding.layout import Regather
from dcil_dsl.extras.sharding.shards import Shards, shard
from dcil_dsl.tasks import IMAGES, Task
from dcil_dsl.training.machine import Options
from dcil_dsl.training.step import Batch, GradientStep


def shard_for_step(dual: Dual, options: Options) -> type[GradientStep]:
    """Cut the weights of `dual` in place; the step for them. InputError as check_shardable."""
    shard(dual, options.ranks, torch.device(options.device))
    return ShardedStep


class ShardedStep(GradientStep):
    """Gradients of rows. Those of tensors that are whole on each rank are averaged at the end."""

    def __init__(
        self,
        dual: Dual,
        optimizer: torch.optim.Optimizer,
        options: Options,
        task: Task = IMAGES,
    ):
        super().__init__(dual, optimizer, options, task)
        assert isinstance(dual.placement, Shards)
        self.shards, self.wraps = dual.placement, False

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with Regather.hooks():
            return super().forward(batch)

    @torch.no_grad()
    def exchange(self) -> None:
        named = self.dual.trainable()
        grads = (p.grad for name, p in named if not self.shards.holds_part(name))
        self.ranks.average(grad for grad in grads if grad is not None)

    def apply(self, rate: float) -> None:
        self.unscale()  # here the ranks exchange whether a gradient is infinite
        super().apply(rate)

    @torch.no_grad()
    def clip(self, largest: float) -> None:
        """torch's clip_grad_norm_ over the whole of all gradients."""
        grads = {name: p.grad for name, p in self.dual.trainable() if p.grad is not None}
        parted = [g for name, g in grads.items() if self.shards.holds_part(name)]
        others = [g for name, g in grads.items() if not self.shards.holds_part(name)]
        square = self.ranks.sum(_square(parted, grads)) + _square(others, grads)
        factor = (largest / (square.sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(grads.values()), factor)

    def make_scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        """What scales losses in fp16.

        In parts a gradient may be infinite on one rank alone. All skip the step then, and lower the
        scale, as they tell each other in unscale_, which is to be called at each step.
        """
        if not enabled:
            return super().make_scaler(device, enabled)
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type)


def _square(grads: list[Tensor], like: Mapping[str, Tensor]) -> Tensor:
    if not grads:
        first = next(iter(like.values()))
        return first.new_zeros(())
    wide = (grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads)
    return torch.stack([grad.square().sum() for grad in wide]).sum()
