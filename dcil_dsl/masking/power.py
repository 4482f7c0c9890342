"""Powerpropagation: weights stored as theta, w = theta |theta|^(alpha - 1).

In:   theta or w, alpha of at least 1.
Out:  the other of the two.
Not:  no masks: the largest of theta are the largest of w.

Schwarz et al. 2021, arXiv:2110.00296, section 2: a gradient that grows with theta makes the small
smaller. Zero is a fixed point; weight decay acts on theta.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Power(torch.autograd.Function):
    """
    forward    w = theta |theta|^(alpha - 1)
    backward   dtheta = alpha |theta|^(alpha - 1) dw
    """

    @staticmethod
    def forward(ctx, theta, alpha):
        size = theta.abs().pow(alpha - 1)
        ctx.save_for_backward(size)
        ctx.alpha = alpha
        return theta * size

    @staticmethod
    def backward(ctx, grad):
        # Not autograd's: the derivative of |theta|^(alpha - 1) alone is infinite at 0.
        (size,) = ctx.saved_tensors
        return ctx.alpha * size * grad, None


def raise_power(theta: Tensor, alpha: float) -> Tensor:
    """w of theta, with its gradient."""
    return Power.apply(theta, alpha)


@torch.no_grad()
def take_root(w: Tensor, alpha: float) -> Tensor:
    """theta of w: sign(w) |w|^(1 / alpha), so that a network starts with the weights it has."""
    return w.sign() * w.abs().pow(1 / alpha)
