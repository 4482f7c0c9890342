"""Apply a score word to weights and gradients, and order signed scores.

In:   weights, gradients, a score word (words/scores.py) or its token.
Out:  one number per weight; the smallest are pruned first. Sums over steps are updated in place.
Not:  no formulas (words/scores.py), no masks (select.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.words.registry import load
from dcil_dsl.words.scores import AnyScore, Draw, GradientScore


@torch.no_grad()
def score_weights(w: Tensor, score: AnyScore, draw: Draw) -> Tensor:
    """The scores of a weight by its values, in its shape and on its device."""
    return _in_shape(score.at(w.detach(), draw), w, score)


@torch.no_grad()
def add_gradient_score(
    total: Tensor, w: Tensor, grad: Tensor, token: str, unscale: Tensor, gain: float
) -> None:
    """Add the scores of one backward pass to `total`, in place.

        total += gain * score(w, unscale * grad)

    grad is dL/dv, with v the view of w on a path. `unscale`, a tensor of one number, is one over
    the loss scale of fp16. Scores that are not finite, as after an overflow, are not added: they
    would stay in the sum for good.
    """
    score = load(GradientScore, token)
    step = _in_shape(score.score(w, grad * unscale), w, score)
    step = step.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(total.dtype)
    # Round the product and the sum separately; add_ with alpha= fuses them on a CPU.
    total.add_(step if gain == 1 else step * gain)


@torch.no_grad()
def without_sign(scores: Tensor) -> Tensor:
    """Non-negative float64 numbers in the order of `scores`, which may be negative.

    The rank of a float32 among all float32 numbers: its bits read as an integer, inverted if it
    is negative. Other types are compared as float32; NaN is the highest, as in select.py.
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
        f"`{score.called}` must return scores of the weight's shape, {wanted}; "
        f"it returned {given or 'one number'}"
    )
