"""Random numbers that are a function of where they are used, and of nothing that was drawn before.

In:   the run's seed, an epoch, a batch, a place in the pipeline.
Out:  generators on the CPU, whatever the device; numbers brought to the device without a wait.
Not:  torch's global random numbers are neither used nor moved.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*place: int | str) -> int:
    """A seed of 63 bits, in which no two places are near each other."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator_at(*place: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*place))


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """The numbers on `device`; on CUDA from pinned memory, so that the host need not wait."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def whole_numbers(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Uniform numbers of [0, 1) as whole numbers of 0 .. count - 1."""
    return (uniform * count).floor().long()
