"""Random numbers as a function of the place that uses them, independent of earlier draws.

In:   the run's seed, an epoch, a batch, a place in the pipeline.
Out:  seeds, and generators on the CPU, whatever the device.
Not:  torch's global generator is neither used nor advanced.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*place: int | str) -> int:
    """A seed of 63 bits, a hash of the place."""
    text = "/".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator_at(*place: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*place))
