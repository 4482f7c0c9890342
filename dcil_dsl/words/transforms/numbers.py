"""Random numbers of a batch: drawn on the CPU, brought to its device without a wait.

In:   random numbers on the CPU.
Out:  the same on a device; whole numbers.
Not:  no generators (data/chance.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.words.widest import widest

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
