"""The autograd function of `power(alpha)`. Imports torch; parametrizations.py does so late.

In:   theta, alpha.
Out:  w = theta |theta|^(alpha - 1), with its gradient.
Not:  not the word (parametrizations.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RaisePower(torch.autograd.Function):
    """
    forward    w = theta |theta|^(alpha - 1)
    backward   dtheta = alpha |theta|^(alpha - 1) dw
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, alpha: float) -> Tensor:
        size = theta.abs().pow(alpha - 1)
        ctx.save_for_backward(size)
        ctx.alpha = alpha
        return theta * size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Not autograd's: the derivative of |theta|^(alpha - 1) alone is infinite at 0.
        (size,) = ctx.saved_tensors
        return ctx.alpha * size * grads[0], None
