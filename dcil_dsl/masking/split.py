"""One weight, one view a path, and what part of each view's gradient comes back.

In:   a weight, its mask, and for each path its view and its shares; a score that one path keeps.
Out:  the views; on the way back one gradient for the weight, made in one pass, and the score.
Not:  no names, no steps; compiler/route_gradients.py puts these calls into the graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcil_dsl.masking.score import add_gradient_score


class Scoring(NamedTuple):
    """What each backward pass adds to a score: see add_gradient_score.

    total    the score, one number a weight, changed in place
    unscale  one over the scale of the loss, a tensor of one number
    score    "taylor" | "movement" | "gradient"
    path     whose gradient is taken, its place among the views
    gain     1 for a sum, 1 - decay for a moving average
    """

    total: Tensor
    unscale: Tensor
    score: str
    path: int
    gain: float


class SplitWeight(torch.autograd.Function):
    """The views that the paths see of one weight, and the routing of their gradients.

        forward    v_p = w * m  (masked)   or   w  (full)            for each path p
        backward   dw  = m * sum_p kept_p * dv_p  +  (1 - m) * sum_p pruned_p * dv_p

    m is 1 where the weight is kept. DCIL is masked (1, 0) and full (0, 1): every weight
    learns from exactly one path, dw = where(m, dv_sparse, dv_dense). arXiv:2109.04660.

    A score takes dv_p as it comes, before mask and shares.
    """

    @staticmethod
    def forward(ctx, w, mask, views, kept, pruned, scoring):
        if scoring is None:
            ctx.save_for_backward(mask)
        else:
            # The total is not saved for backward: it is meant to change between two of them.
            ctx.save_for_backward(mask, w, scoring[1])
            ctx.total, (ctx.score, ctx.path, ctx.gain) = scoring[0], scoring[2:]
        ctx.set_materialize_grads(False)
        ctx.kept, ctx.pruned = kept, pruned
        # where, not w * m: an infinite weight that is pruned must not become NaN.
        return tuple(
            torch.where(mask, w, w.new_zeros(())) if view == "masked" else w.view_as(w)
            for view in views
        )

    @staticmethod
    def backward(ctx, *grads):
        mask, *scored = ctx.saved_tensors
        if scored and grads[ctx.path] is not None:
            w, unscale = scored
            add_gradient_score(ctx.total, w, grads[ctx.path], ctx.score, unscale, ctx.gain)
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
        return grad, None, None, None, None, None


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
    scoring: Scoring | None = None,
) -> tuple[Tensor, ...]:
    """Views of `w`, one for each entry of `views` ("masked" | "full"); see SplitWeight.

    mask is boolean and of w's shape; `kept[p]` and `pruned[p]` are path p's shares. `scoring` is
    a Scoring, or a tuple like one: what it counts is counted once a backward pass.
    """
    return SplitWeight.apply(w, mask, views, kept, pruned, scoring)


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
