"""Split a weight into one view per path, and route the gradients of the views back to the weight.

In:   a weight, its mask, and for each path its view and its shares of the gradient; a score that
      is computed from the gradient of one path.
Out:  the views; in the backward pass one gradient for the weight, and the updated score.
Not:  no names, no steps; compiler/route_gradients.py puts these calls into the graph.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcil_dsl.masking.score import add_gradient_score
from dcil_dsl.masking.views import see
from dcil_dsl.words.views import Soft

# Values that hold no tensors to change.
ATOMS = (
    bool,
    int,
    float,
    str,
    type(None),
    type,
    nn.Module,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)


class Scoring(NamedTuple):
    """A score that each backward pass updates; see add_gradient_score.

    total    the score, one number per weight, updated in place
    unscale  one over the loss scale, a tensor of one number
    score    the token of a score (words/scores.py)
    path     the index among the views of the path whose gradient counts
    gain     1 for a sum, 1 - decay for a moving average
    """

    total: Tensor
    unscale: Tensor
    score: str
    path: int
    gain: float


class SplitWeight(torch.autograd.Function):
    """The views that the paths see of one weight, and the routing of their gradients.

        forward    v_p = the view of path p: w * m, w, ... (words/views.py)
        backward   dw  = m * sum_p kept_p * dv_p  +  (1 - m) * sum_p pruned_p * dv_p

    m is 1 where the weight is kept. DCIL is masked (1, 0) and full (0, 1): every weight
    learns from exactly one path, dw = where(m, dv_sparse, dv_dense). arXiv:2109.04660.

    The backward pass treats every view as the identity: straight through. The pruned weights of
    a reserve, if there is one, have shares of their own. A score takes dv_p before mask and shares.
    """

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        mask: Tensor,
        views: tuple[str, ...],
        kept: tuple[float, ...],
        pruned: tuple[float, ...],
        scoring: Scoring | None,
        soft: Soft | None,
        reserve: tuple[Tensor, tuple[float, ...]] | None,
    ) -> tuple[Tensor, ...]:
        held, ctx.reserved = reserve if reserve is not None else (None, None)
        saved: tuple[Tensor | None, ...] = (mask, held)
        if scoring is not None:
            # Not saved for backward: the total may change between two backward passes.
            saved += (w, scoring[1])
            ctx.total, (ctx.score, ctx.path, ctx.gain) = scoring[0], scoring[2:]
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.kept, ctx.pruned = kept, pruned
        soft = soft and Soft(*soft)
        return tuple(see(w, mask, view, soft) for view in views)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # nn.Embedding(sparse=True) gives a gradient of some rows; a mask covers all rows.
        if not torch.compiler.is_compiling():
            grads = tuple(g.to_dense() if g is not None and g.is_sparse else g for g in grads)
        mask, held, *scored = ctx.saved_tensors
        if scored and (of_path := grads[ctx.path]) is not None:
            w, unscale = scored
            add_gradient_score(ctx.total, w, of_path, ctx.score, unscale, ctx.gain)
        grad = _weighted_sum(ctx.pruned, grads)
        if held is not None:
            grad = _either(held, _weighted_sum(ctx.reserved, grads), grad)
        grad = _either(mask, _weighted_sum(ctx.kept, grads), grad)
        return grad, None, None, None, None, None, None, None


class ShareGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.share == 0 else ctx.share * grad, None


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
    """Views of `w`, one for each token in `views` (words/views.py); see SplitWeight.

    mask     boolean, in the shape of w; `kept[p]` and `pruned[p]` are the shares of path p
    scoring  a Scoring, or a tuple of its fields; each backward pass updates the score once
    soft     a Soft, or a tuple of its fields, if a view is a soft threshold
    reserve  the mask of the reserve, and each path's share of its gradient
    """
    split: Any = SplitWeight.apply
    seen: tuple[Tensor, ...] = split(w, mask, views, kept, pruned, scoring, soft, reserve)
    return seen


def share_gradient(values: Any, share: float, watched: bool = False) -> Any:
    """`values`, through which only `share` of the gradient flows back. 0 detaches.

    values   a tensor, or any structure or object with tensors in it, of which a copy is returned
    watched  a reader acts on `requires_grad`, which stays: no gradient flows, but one is computed
    """
    if share == 1:
        return values
    if isinstance(values, Tensor):
        apply: Any = ShareGradient.apply
        detaches = share == 0 and not (watched and values.requires_grad)
        return values.detach() if detaches else apply(values, share)
    return _map_tensors(lambda tensor: share_gradient(tensor, share, watched), values)


def _map_tensors(
    change: Callable[[Tensor], Tensor], value: Any, seen: dict[int, Any] | None = None
) -> Any:
    """A copy of `value` with `change` applied to every tensor in it.

    Tensors may be in lists, tuples, dictionaries and objects, however deep. Modules and functions
    stay as they are.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, ATOMS):
        return value
    if isinstance(value, (tuple, list)):
        parts = [_map_tensors(change, part, seen) for part in value]
        if hasattr(value, "_make"):
            return value._make(parts)  # a named tuple
        if type(value) in (list, tuple) or isinstance(value, tuple):
            return type(value)(parts)
    if id(value) in seen:
        return seen[id(value)]
    if not isinstance(value, (dict, list)) and not getattr(value, "__dict__", None):
        return value
    seen[id(value)] = copied = copy.copy(value)
    if isinstance(value, dict):
        for key, part in value.items():
            copied[key] = _map_tensors(change, part, seen)
    elif isinstance(value, list):
        copied[:] = parts
    for name, part in getattr(value, "__dict__", {}).items():
        vars(copied)[name] = _map_tensors(change, part, seen)
    return copied


def _either(mask: Tensor, here: Tensor | None, elsewhere: Tensor | None) -> Tensor | None:
    """`here` where the mask is true and `elsewhere` where it is not; None stands for zeros."""
    if here is elsewhere:
        return here
    if here is None:
        assert elsewhere is not None
        return torch.where(mask, elsewhere.new_zeros(()), elsewhere)
    return torch.where(mask, here, here.new_zeros(()) if elsewhere is None else elsewhere)


def _weighted_sum(shares: Sequence[float], grads: Sequence[Tensor | None]) -> Tensor | None:
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
