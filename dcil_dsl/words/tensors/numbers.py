"""Arithmetic that words share: random numbers of a batch, running sums, powers.

In:   tensors of numbers.
Out:  the same on a device without a wait; whole numbers; sums that no order of addition changes;
      theta |theta|^(alpha - 1) with its gradient.
Not:  no generators (data/chance.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcil_dsl.words.tensors.widest import widest

Draws = tuple[Tensor, ...]  # each with a row for every image of the batch


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """The numbers on `device`; on CUDA from pinned memory, so that the host need not wait."""
    if numbers.dtype == torch.float64:
        numbers = numbers.to(widest(device))
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def whole_numbers(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Uniform numbers of [0, 1) as whole numbers of 0 .. count - 1."""
    return (uniform * count).floor().long()


def running_sums(highest_first: Tensor) -> Tensor:
    """highest_first.cumsum(0), of numbers from zero up, float64.

    Added as whole numbers, whose sum does not depend on the order: a device adds floats in another
    order at each call, so that ranks would disagree on a mask. Each number is taken as
    high * u + low * u * 2^-size, u small against the first; n of either fit into 63 bits.
    """
    size = 62 - (len(highest_first) - 1).bit_length()
    first = highest_first[:1]
    power = (size - torch.frexp(first).exponent.long()).clamp(-1022, 1023)
    scale = ((power + 1023) << 52).view(torch.float64)  # 2^power
    scaled = highest_first * scale
    high = scaled.floor()
    low = ((scaled - high) * 2.0**size).floor()
    sums = high.long().cumsum(0).double() + low.long().cumsum(0).double() * 2.0**-size
    return torch.where(first.isfinite(), sums / scale, first)


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
