"""One weight, one view a path, and what part of each view's gradient comes back.

In:   a weight, its masks, and for each path its view and its shares; a score that one path keeps.
Out:  the views; on the way back one gradient for the weight, made in one pass, and the score.
Not:  no names, no steps; compiler/route_gradients.py puts these calls into the graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcil_dsl.masking.score import add_gradient_score
from dcil_dsl.masking.structures import map_parts
from dcil_dsl.masking.views import Soft, see


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

        forward    v_p = what path p sees of w: w * m, w, ... (views.py)
        backward   dw  = m * sum_p kept_p * dv_p  +  (1 - m) * sum_p pruned_p * dv_p

    m is 1 where the weight is kept. DCIL is masked (1, 0) and full (0, 1): every weight
    learns from exactly one path, dw = where(m, dv_sparse, dv_dense). arXiv:2109.04660.

    The way back is that of the identity whatever the view: straight through. Of the pruned
    weights those of a reserve, where there is one, have shares of their own. A score takes dv_p
    as it comes, before mask and shares.
    """

    @staticmethod
    def forward(ctx, w, mask, views, kept, pruned, scoring, soft, reserve):
        held, ctx.reserved = reserve if reserve is not None else (None, None)
        saved = (mask, held)
        if scoring is not None:
            # The total is not saved for backward: it is meant to change between two of them.
            saved += (w, scoring[1])
            ctx.total, (ctx.score, ctx.path, ctx.gain) = scoring[0], scoring[2:]
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.kept, ctx.pruned = kept, pruned
        soft = soft and Soft(*soft)
        return tuple(see(w, mask, view, soft) for view in views)

    @staticmethod
    def backward(ctx, *grads):
        # nn.Embedding(sparse=True) gives rows alone; a mask goes over all of them.
        if not torch.compiler.is_compiling():
            grads = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        mask, held, *scored = ctx.saved_tensors
        if scored and grads[ctx.path] is not None:
            w, unscale = scored
            add_gradient_score(ctx.total, w, grads[ctx.path], ctx.score, unscale, ctx.gain)
        grad = _weighted_sum(ctx.pruned, grads)
        if held is not None:
            grad = _either(held, _weighted_sum(ctx.reserved, grads), grad)
        grad = _either(mask, _weighted_sum(ctx.kept, grads), grad)
        return grad, None, None, None, None, None, None, None


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
    soft: Soft | None = None,
    reserve: tuple[Tensor, tuple[float, ...]] | None = None,
) -> tuple[Tensor, ...]:
    """Views of `w`, one for each entry of `views` (views.py); see SplitWeight.

    mask     boolean, of w's shape; `kept[p]` and `pruned[p]` are path p's shares
    scoring  a Scoring, or a tuple like one: what it counts is counted once a backward pass
    soft     a Soft, or a tuple like one, where a view is a soft threshold
    reserve  a mask of pruned weights, and each path's share of their gradient
    """
    return SplitWeight.apply(w, mask, views, kept, pruned, scoring, soft, reserve)


def share_gradient(values, share: float):
    """`values` unchanged; `share` of their gradient flows back. 0 detaches.

    values  a tensor, or any structure or object that has tensors in it: a copy, in which they are
            shared. What is none (a size, a count) has no gradient to share.
    """
    if share == 1:
        return values
    if isinstance(values, Tensor):
        return values.detach() if share == 0 else ShareGradient.apply(values, share)
    return map_parts(lambda tensor: share_gradient(tensor, share), values)


def _either(mask: Tensor, here: Tensor | None, elsewhere: Tensor | None) -> Tensor | None:
    """`here` where the mask is true and `elsewhere` where not; None is zero everywhere."""
    if here is elsewhere:
        return here
    zero = (here if here is not None else elsewhere).new_zeros(())
    return torch.where(
        mask, zero if here is None else here, zero if elsewhere is None else elsewhere
    )


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
