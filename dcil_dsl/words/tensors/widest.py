"""The widest floating-point numbers that a device computes with.

In:   a device.
Out:  float64; float32 on Apple's GPUs, which have no float64.
Not:  no tensor.
"""

from __future__ import annotations

import torch


def has_float64(device: torch.device) -> bool:
    """Whether a tensor on the device can be float64."""
    return device.type != "mps"


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float64 if has_float64(device) else torch.float32
