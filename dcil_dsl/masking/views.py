"""What a path sees of a weight.

In:   a weight, its mask, the name of a view; for a soft threshold its two numbers.
Out:  the view, in the weight's shape.
Not:  no gradients (split.py), no choice of what is kept (select.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcil_dsl.extend.outside import is_token, load
from dcil_dsl.masking.select import Across

EPSILON = 1e-6


class Soft(NamedTuple):
    """Of one weight: the threshold, a tensor of one number, and the scale of each filter, in a
    shape that broadcasts over the weight's."""

    threshold: Tensor
    scale: Tensor


def see(w: Tensor, mask: Tensor, view: str, soft: Soft | None = None) -> Tensor:
    """
    full            w
    masked          w where m, else 0
    complement      0 where m, else w
    soft_threshold  c sign(w) max(|w| - t, 0) where m, else 0

    a token         what its word (extend/outside.py) makes of w and m, where m, else 0

    where, not w * m: an infinite weight that is pruned must not become NaN.
    """
    zero = w.new_zeros(())
    if is_token(view):
        return torch.where(mask, load(view).see(w, mask), zero)
    match view:
        case "full":
            return w.view_as(w)
        case "masked":
            return torch.where(mask, w, zero)
        case "complement":
            return torch.where(mask, zero, w)
        case "soft_threshold":
            shrunk = w - w.clamp(-soft.threshold, soft.threshold)
            return torch.where(mask, soft.scale * shrunk, zero)
    raise ValueError(f"no view is called {view!r}")


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
