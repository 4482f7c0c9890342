"""One weight, one view a path, and what part of each view's gradient comes back.

In:   a weight, its mask, and for each path its view and its shares.
Out:  the views; on the way back one gradient for the weight, made in one pass.
Not:  no names, no steps; compiler/route_gradients.py puts these calls into the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SplitWeight(torch.autograd.Function):
    """The views that the paths see of one weight, and the routing of their gradients.

        forward    v_p = w * m  (masked)   or   w  (full)            for each path p
        backward   dw  = m * sum_p kept_p * dv_p  +  (1 - m) * sum_p pruned_p * dv_p

    m is 1 where the weight is kept. DCIL is masked (1, 0) and full (0, 1): every weight
    learns from exactly one path, dw = where(m, dv_sparse, dv_dense). arXiv:2109.04660.
    """

    @staticmethod
    def forward(ctx, w, mask, views, kept, pruned):
        ctx.save_for_backward(mask)
        ctx.set_materialize_grads(False)
        ctx.kept, ctx.pruned = kept, pruned
        # where, not w * m: an infinite weight that is pruned must not become NaN.
        return tuple(
            torch.where(mask, w, w.new_zeros(())) if view == "masked" else w.view_as(w)
            for view in views
        )

    @staticmethod
    def backward(ctx, *grads):
        (mask,) = ctx.saved_tensors
        kept = _weighted_sum(ctx.kept, grads)
        pruned = _weighted_sum(ctx.pruned, grads)
        if kept is None and pruned is None:
            grad = None
        elif kept is pruned:
            grad = kept
        else:
            template = kept if kept is not None else pruned
            zero = template.new_zeros(())
            grad = torch.where(
                mask, zero if kept is None else kept, zero if pruned is None else pruned
            )
        return grad, None, None, None, None


class ShareGradient(torch.autograd.Function):
    """The same values, with a share of their gradient."""

    @staticmethod
    def forward(ctx, values, share):
        ctx.share = share
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad):
        return ctx.share * grad, None


def split_weight(
    w: Tensor,
    mask: Tensor,
    views: tuple[str, ...],
    kept: tuple[float, ...],
    pruned: tuple[float, ...],
) -> tuple[Tensor, ...]:
    """Views of `w`, one for each entry of `views` ("masked" | "full"); see SplitWeight.

    mask is boolean and of w's shape; `kept[p]` and `pruned[p]` are path p's shares.
    """
    return SplitWeight.apply(w, mask, views, kept, pruned)


def share_gradient(values, share: float):
    """`values` unchanged; `share` of their gradient flows back. 0 detaches.

    What is no tensor (a size, a count) passes through: it has no gradient to share.
    """
    if not isinstance(values, Tensor) or share == 1:
        return values
    return values.detach() if share == 0 else ShareGradient.apply(values, share)


def _weighted_sum(shares, grads):
    terms = [
        grad if share == 1 else share * grad
        for share, grad in zip(shares, grads, strict=True)
        if share != 0 and grad is not None
    ]
    if not terms:
        return None
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
