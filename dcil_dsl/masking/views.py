"""The view of a weight that a path computes with, and the numbers of a soft threshold.

In:   a weight, its mask, the token of a view (words/views.py).
Out:  the view, in the shape of the weight; thresholds and scales.
Not:  no gradients (split.py), no masks (select.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.masking.select import Across
from dcil_dsl.words.registry import load
from dcil_dsl.words.views import AnyView, Parametrization, Soft

EPSILON = 1e-6


def see(w: Tensor, mask: Tensor, token: str, soft: Soft | None = None) -> Tensor:
    """The view that a token names."""
    return load(AnyView, token).of(w, mask, soft)


def read_stored(theta: Tensor, token: str) -> Tensor:
    """The weights of a rule with a `param`, which stores them as theta."""
    return load(Parametrization, token).weight(theta)


@torch.no_grad()
def soft_scale(
    w: Tensor, mask: Tensor, filter_axis: int = 0, across: Across | None = None
) -> Tensor:
    """The factor c by which each filter is scaled to make up for its pruned weights.

        r = (mean |w| m + e) / (mean |w| + e)      c = 1.01 / (r + 0.01)      means over a filter

    From 1 with all weights kept to 101 with none. Vanderschueren & De Vleeschouwer 2023, "Are
    Straight-Through gradients and Soft-Thresholding all you need for Sparse Training?", as in the
    authors' code (vanderschuea/stthree).

    across  the processes that each hold some rows of w; filters along another axis span all rows
    """
    size = w.abs()
    others = [axis for axis in range(w.dim()) if axis != filter_axis]
    if not others:
        return torch.ones_like(w)
    kept = torch.where(mask, size, size.new_zeros(()))
    if across is None or filter_axis == 0:
        kept, every = (sizes.mean(others, keepdim=True) for sizes in (kept, size))
    else:
        dtype = torch.promote_types(w.dtype, torch.float32)  # no sums in bf16 or fp16
        sums = [t.sum(others, True, dtype=dtype) for t in (kept, size, torch.ones_like(w))]
        kept, every, count = across.sum(torch.stack(sums))
        kept, every = kept / count, every / count
    return 1.01 / ((kept + EPSILON) / (every + EPSILON) + 0.01)


@torch.no_grad()
def largest_pruned(w: Tensor, mask: Tensor) -> Tensor:
    """The largest |w| that the mask prunes, a tensor of one number; 0 if it prunes none."""
    if not w.numel():  # this process has no rows of it
        return w.new_zeros(())
    return torch.where(mask, w.new_zeros(()), w.abs()).amax()
