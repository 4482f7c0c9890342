"""What a path sees of a weight, and the numbers that a soft threshold needs.

In:   a weight, its mask, the token of a view (words/views.py).
Out:  the view, in the weight's shape; thresholds and scales.
Not:  no formula of a view, no gradients (split.py), no choice of what is kept (select.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.masking.select import Across
from dcil_dsl.words.parametrizations import Parametrization
from dcil_dsl.words.record import load
from dcil_dsl.words.views import AnyView, Soft

EPSILON = 1e-6


def see(w: Tensor, mask: Tensor, token: str, soft: Soft | None = None) -> Tensor:
    """The view that a token names."""
    return load(AnyView, token).of(w, mask, soft)


def read_stored(theta: Tensor, token: str) -> Tensor:
    """The weights that a rule with a `param` stores as theta, with their gradient."""
    return load(Parametrization, token).weight(theta)


@torch.no_grad()
def soft_scale(
    w: Tensor, mask: Tensor, filter_axis: int = 0, across: Across | None = None
) -> Tensor:
    """What makes up, filter by filter, for what a mask has taken from the sizes of its weights.

        r = (mean |w| m + e) / (mean |w| + e)      c = 1.01 / (r + 0.01)      means over a filter

    From 1 where all is kept to at most 101. Vanderschueren & De Vleeschouwer 2023, "Are
    Straight-Through gradients and Soft-Thresholding all you need for Sparse Training?", as in the
    authors' code (vanderschuea/stthree).

    across  where these are some processes' rows of w: filters along another axis lie on all of them
    """
    size = w.abs()
    others = [axis for axis in range(w.dim()) if axis != filter_axis]
    if not others:
        return torch.ones_like(w)
    kept = torch.where(mask, size, size.new_zeros(()))
    if across is None or filter_axis == 0:
        kept, every = (sizes.mean(others, keepdim=True) for sizes in (kept, size))
    else:
        dtype = torch.promote_types(w.dtype, torch.float32)  # of bf16 and fp16 no sums
        sums = [t.sum(others, True, dtype=dtype) for t in (kept, size, torch.ones_like(w))]
        kept, every, count = across.sum(torch.stack(sums))
        kept, every = kept / count, every / count
    return 1.01 / ((kept + EPSILON) / (every + EPSILON) + 0.01)


@torch.no_grad()
def largest_pruned(w: Tensor, mask: Tensor) -> Tensor:
    """The largest |w| that the mask prunes, a tensor of one number; 0 where it keeps all."""
    if not w.numel():  # of whose rows this process has none
        return w.new_zeros(())
    return torch.where(mask, w.new_zeros(()), w.abs()).amax()
