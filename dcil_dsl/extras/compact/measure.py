"""What a network costs, measured here: parameters, arithmetic, time.

In:   two networks that compute the same, one batch of inputs.
Out:  Costs of each: counted, and timed on the device that they are on.
Not:  no estimate: a count is of what ran, a time is the median of real calls.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.graph.inputs import Inputs

WARMUP, CALLS = 3, 15


@dataclass(frozen=True)
class Costs:
    """parameters; multiply-accumulates of convolutions and matrix products for one example;
    milliseconds for the batch, the median of CALLS calls, and the fastest and slowest of them."""

    parameters: int
    macs: int
    milliseconds: float
    fastest: float
    slowest: float


@dataclass(frozen=True)
class Measured:
    """The network before and after, on one device, with one batch size."""

    before: Costs
    after: Costs
    device: str
    batch_size: int

    def to_dict(self) -> dict:
        return asdict(self) | {"calls": CALLS}


def measure(before: nn.Module, after: nn.Module, inputs: Inputs) -> Measured:
    """Costs of both networks in evaluation mode. Their calls alternate, so that a machine that
    slows down slows both."""
    batch, device = inputs.batch_size(), next(inputs.tensors()).device
    times = ([], [])
    with torch.no_grad():
        for call in range(WARMUP + CALLS):
            for network, seen in zip((before, after), times):
                _wait(device)
                start = time.perf_counter()
                network(*inputs.args, **inputs.kwargs)
                _wait(device)
                if call >= WARMUP:
                    seen.append(1000 * (time.perf_counter() - start))
    costs = [
        Costs(
            num_parameters(network),
            count_macs(network, inputs) // batch,
            median(seen),
            min(seen),
            max(seen),
        )
        for network, seen in zip((before, after), times)
    ]
    return Measured(*costs, device=device_name(device), batch_size=batch)


def num_parameters(model: nn.Module) -> int:
    """Numbers that could be trained; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of convolutions and matrix products, for the whole batch."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused, its products would not be seen
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs.args, **inputs.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {count(torch.get_num_threads(), 'thread')}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
