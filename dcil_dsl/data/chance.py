"""Random numbers that are a function of where they are used, and of nothing that was drawn before.

In:   the run's seed, an epoch, a batch, a place in the pipeline.
Out:  seeds, and generators on the CPU, whatever the device.
Not:  torch's global random numbers are neither used nor moved.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*place: int | str) -> int:
    """A seed of 63 bits, in which no two places are near each other."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator_at(*place: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*place))
