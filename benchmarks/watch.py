"""What the gradients and masks of a benchmark's run do, epoch by epoch.

In:   a run of the main job, made inside `watched()`.
Out:  in each line of its metrics.jsonl, under "watch":
      grad_norm      the norm of all gradients before clipping, the mean over the epoch's steps
      grad_norm_max  the largest of them
      dead_filters   filters of pruned layers that keep no weight
      revived        weights that some mask pruned, and that are kept now
      cosine         of the gradients that reach the first two paths, over kept weights, summed over
                     every eighth step; absent where only one path runs
Not:  no number of the run changes. For one process in eager float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.masking.split import SplitWeight
from dcil_dsl.training import session
from dcil_dsl.training.step import Batch, GradientStep, Wrapper

NORMS, DOTS, PRUNED = "watch/norms", "watch/dots", "watch/pruned"
EVERY = 8  # steps between two that measure the cosine


@contextmanager
def watched() -> Iterator[None]:
    """Inside, `dcil.train` makes steps that are watched."""
    wrap_step = session.wrap_step
    with patch.object(session, "wrap_step", lambda step: wrap_step(WatchedStep(step))):
        yield


class WatchedStep(Wrapper):
    """A step whose gradients are measured as they are before clipping.

    memory  watch/norms   sum and largest of the norms of the epoch's steps, and their number
            watch/dots    a.b, a.a and b.b of the two paths' gradients, over the epoch
            watch/pruned/<weight>  where some mask has pruned it
    """

    def __init__(self, inner: GradientStep):
        dual, device = inner.dual, inner.first_bad.device
        sums = {name: torch.zeros(3, dtype=torch.float64, device=device) for name in (NORMS, DOTS)}
        memory = sums | {f"{PRUNED}/{name}": torch.zeros_like(m) for name, m in dual.masks.items()}
        super().__init__(inner, memory)

    @property
    def dual(self) -> Dual:
        return self.plain.dual

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.is_first and batch.step % self.dual.plan.steps_per_epoch == 0:
            self.memory[NORMS].zero_()
            self.memory[DOTS].zero_()
        if batch.step % EVERY:
            result = self.inner.gradients(batch)
        else:
            with comparing_paths(self.memory[DOTS]):
                result = self.inner.gradients(batch)
        if batch.is_first and (batch.masks_moved or batch.step == 0):
            for name, mask in self.dual.masks.items():
                self.memory[f"{PRUNED}/{name}"] |= ~mask
        if batch.is_last:
            self._measure_norm()
        return result

    def _measure_norm(self) -> None:
        gradients = [p.grad for _, p in self.dual.trainable() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).double().norm()
        norms = self.memory[NORMS]
        norms.copy_(torch.stack([norms[0] + norm, norms[1].maximum(norm), norms[2] + 1]))

    def facts(self) -> dict[str, Any]:
        total, largest, count = self.memory[NORMS].tolist()
        dot, first, second = self.memory[DOTS].tolist()
        found = {"grad_norm": total / max(count, 1), "grad_norm_max": largest}
        found |= {"dead_filters": self._dead_filters(), "revived": self._revived()}
        if first and second:
            found["cosine"] = dot / (first * second) ** 0.5
        return self.inner.facts() | {"watch": found}

    def _dead_filters(self) -> int:
        axes = {layer.parameter: layer.out_axis for layer in self.dual.plan.layers}
        kept = (mask.movedim(axes[name], 0).flatten(1) for name, mask in self.dual.masks.items())
        return sum(int((~mask.any(1)).sum()) for mask in kept)

    def _revived(self) -> int:
        masks = self.dual.masks.items()
        return sum(int((mask & self.memory[f"{PRUNED}/{name}"]).sum()) for name, mask in masks)


@contextmanager
def comparing_paths(dots: Tensor) -> Iterator[None]:
    """Add to `dots` a.b, a.a and b.b over the kept weights, where a and b are the gradients that
    reach the views of the first two paths, before `update` routes them."""
    backward = SplitWeight.backward

    def measured(ctx: Any, *grads: Tensor | None) -> Any:
        if len(grads) > 1 and grads[0] is not None and grads[1] is not None:
            mask = ctx.saved_tensors[0]
            a, b = (grad[mask].double() for grad in grads[:2])
            dots.add_(torch.stack([a.dot(b), a.dot(a), b.dot(b)]))
        return backward(ctx, *grads)

    with patch.object(SplitWeight, "backward", staticmethod(measured)):
        yield
