"""Scores of weights: by value, by gradients, and in an order without signs.

In:   weights, gradients, a score word (words/scores.py) or its token.
Out:  one number a weight; the larger, the longer it stays. Sums over steps, kept in place.
Not:  no formula, no masks (select.py), no names, no steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.words.record import load
from dcil_dsl.words.scores import AnyScore, Draw, GradientScore


@torch.no_grad()
def score_weights(w: Tensor, score: AnyScore, draw: Draw) -> Tensor:
    """What the score makes of a weight's value, in its shape and on its device."""
    return _in_shape(score.at(w.detach(), draw), w, score)


@torch.no_grad()
def add_gradient_score(
    total: Tensor, w: Tensor, grad: Tensor, token: str, unscale: Tensor, gain: float
) -> None:
    """What one backward pass says of the weights, added to `total` in place.

        total += gain * score(w, unscale * grad)

    grad is dL/dv, v what a path sees of w. `unscale` is one over what L was multiplied by for the
    backward pass, a tensor of one number. Where the score is not finite, as after an overflow in
    fp16, nothing is added: the next step would not forget it.
    """
    score = load(GradientScore, token)
    step = _in_shape(score.score(w, grad * unscale), w, score)
    step = step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(total.dtype)
    # A product and a sum, rounded one by one: on a CPU add_ with alpha= would fuse them.
    total.add_(step if gain == 1 else step * gain)


@torch.no_grad()
def without_sign(scores: Tensor) -> Tensor:
    """Numbers from zero up that are in the order of `scores`, which may be negative; float64.

    The place of a float32 among all of them: its bits read as an integer, turned over where it
    is negative. What is not float32 is compared as float32; NaN is the highest, as in select.py.
    """
    scores = scores.float() + 0.0  # no -0.0
    scores = torch.where(scores.isnan(), scores.abs(), scores)
    bits = scores.view(torch.int32)
    above_zero = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return above_zero.double() + 2.0**31


def _in_shape(scores: Tensor, w: Tensor, score: AnyScore) -> Tensor:
    if scores.shape == w.shape:
        return scores
    given, wanted = (" x ".join(map(str, shape)) for shape in (scores.shape, w.shape))
    raise InputError(
        f"`{score.called}` scores a weight of {wanted} by a tensor of {given or 'one number'}"
    )
