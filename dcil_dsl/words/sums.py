"""Running sums that do not depend on the order of addition. Imports torch.

In:   numbers in descending order.
Out:  their running sums, float64.
Not:  nothing of scores.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
