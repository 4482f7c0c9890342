"""Batch norms that see the batch of all ranks, where the recipe has `sync_norms`.

In:   a dual graph whose batch norms, one for each path where they are private, are PyTorch's.
Out:  the same modules, computing over all ranks while the `with` is open.
Not:  nothing else of the module changes: names, state and exported class stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.training.distributed import Ranks

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synced_norms(
    dual: nn.Module, ranks: Ranks, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Every batch norm of `dual` takes its statistics over all ranks.

    device  where it will compute, wherever its weights lie now

    InputError for a batch norm of another class than PyTorch's, whose arithmetic is unknown.
    """
    norms = {name: m for name, m in dual.named_modules() if isinstance(m, _BatchNorm)}
    classes = {name: type(norm) for name, norm in norms.items()}
    for name, kind in classes.items():
        if ranks.count > 1 and kind not in PLAIN:
            raise InputError(
                f"`sync_norms`: `{name}` is a {kind.__module__}.{kind.__name__}; only PyTorch's "
                "own BatchNorm1d, 2d and 3d can take their statistics over several processes",
                help="leave `sync_norms` out of the recipe's `train`",
            )
    on_device = torch.device(device).type == "cuda"
    try:
        for norm in norms.values() if ranks.count > 1 else ():
            norm.__class__ = nn.SyncBatchNorm if on_device else HostSyncedNorm
            norm.__dict__["process_group"] = None  # all ranks
        yield
    finally:
        for name, norm in norms.items():
            norm.__class__ = classes[name]
            norm.__dict__.pop("process_group", None)


def planned_norms(
    dual: Dual, ranks: Ranks, device: torch.device | str
) -> AbstractContextManager[None]:
    """synced_norms where the plan has `sync_norms`."""
    return synced_norms(dual, ranks, device) if dual.plan.train.sync_norms else nullcontext()


class HostSyncedNorm(_BatchNorm):
    """What nn.SyncBatchNorm, which runs on devices alone, computes; written out for a CPU.

    mean = sum of x / n,   var = sum of (x - mean)^2 / n      over the n values of all ranks
    y = (x - mean) / sqrt(var + eps) * weight + bias
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.running_mean is None,
                eps=self.eps,
            )
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # bf16, fp16
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        n = float(_SumOfRanks.apply(torch.tensor(float(x.numel() // x.shape[1]))))
        mean = _SumOfRanks.apply(x.sum(dims)) / n
        centred = x - mean.view(shape)
        var = _SumOfRanks.apply(centred.square().sum(dims)) / n
        if self.track_running_stats:
            self._remember(mean.detach(), var.detach() * n / max(n - 1, 1))
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        scaled: Tensor = y.to(given)
        return scaled

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


class _SumOfRanks(torch.autograd.Function):
    """The sum over all ranks; each rank's value moves every rank's loss, so gradients add up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total
