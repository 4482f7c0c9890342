"""Measure the effect of removing dead channels, as text and as data.

In:   Compacted, and two networks that compute the same with one batch of inputs.
Out:  Costs of each, counted, and timed on the device that they are on; the table of layers that
      shrank, costs before and after, what stays and why; report.json.
Not:  no estimate: a count is of what ran, a time is the median of real calls.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from textwrap import wrap
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.compact.compaction import Compacted
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.text import shorten, table

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"calls": CALLS}


def measure(before: nn.Module, after: nn.Module, inputs: Inputs) -> Measured:
    """Costs of both networks in evaluation mode. Their calls alternate, so that a machine that
    slows down slows both."""
    batch, device = inputs.batch_size(), next(inputs.tensors()).device
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for call in range(WARMUP + CALLS):
            for network, seen in zip((before, after), times):
                _wait(device)
                start = time.perf_counter()
                network(*inputs.args, **inputs.kwargs)
                _wait(device)
                if call >= WARMUP:
                    seen.append(1000 * (time.perf_counter() - start))
    costs = (
        Costs(
            num_parameters(network),
            count_macs(network, inputs) // batch,
            median(seen),
            min(seen),
            max(seen),
        )
        for network, seen in zip((before, after), times)
    )
    return Measured(next(costs), next(costs), device=device_name(device), batch_size=batch)


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


WIDTH = 100
MOST_REASONS = 8  # shown; the number of the rest is said, report.json has all


def report_of(result: Compacted, measured: Measured) -> dict[str, Any]:
    """Plain data for report.json."""
    return {
        "largest_difference": result.difference,
        "num_inputs": result.num_inputs,
        **measured.to_dict(),
        "class": type(result.model).__name__,
        "stays": [asdict(stay) for stay in result.stays],
    }


def show_compacted(result: Compacted, measured: Measured) -> str:
    """At most 100 columns."""
    rows = []
    for name, entry in result.shapes.tensors.items():
        small = tuple(result.tensors[name].shape)
        if entry.kept and len(small) > 1:
            sizes = [" x ".join(map(str, shape)) for shape in (entry.shape, small)]
            rows.append((shorten(name, 44), *sizes))
    lines = table(("weight", "before", "after"), rows, "lrr")
    if not rows:
        reason = (
            "for these reasons"
            if result.stays
            else (
                "no filter, input channel or head is all zero, and scattered zeros cannot leave; "
                "`--to safetensors` keeps them in place"
            )
        )
        lines = wrap(f"no layer shrank: {reason}", WIDTH)
    before, after = measured.before, measured.after
    # Two times of one network differ by chance alone, and would be read as a gain.
    differs = (before.parameters, before.macs) != (after.parameters, after.macs)
    rows = [
        _row("parameters", before.parameters, after.parameters, "{:,}"),
        _row("multiply-accumulates per example", before.macs, after.macs, "{:,}"),
    ]
    if differs:
        name = f"milliseconds for a batch of {measured.batch_size}"
        spreads = (f"{costs.fastest:.2f}..{costs.slowest:.2f}" for costs in (before, after))
        rows.append(_row(name, before.milliseconds, after.milliseconds, "{:.2f}"))
        rows.append(("  lowest..highest of the calls", *spreads, ""))
    lines += ["", *table(("", "before", "after", "of it"), rows, "lrrr")]
    if differs:
        lines.append(
            f"medians of {CALLS} alternating calls each, on {measured.device}, on this machine as "
            "it was:"
        )
        lines.append("other work on it counts in, and another machine will give other times")
    lines.append(
        f"largest difference on {count(result.num_inputs, 'input')}: {result.difference:.1e} of "
        "1 + the largest output"
    )
    return "\n".join([*lines, *_stays(result)]) + "\n"


def _row(name: str, before: float, after: float, form: str) -> tuple[str, ...]:
    share = f"{after / before:.1%}" if before else "-"
    return name, form.format(before), form.format(after), share


def _stays(result: Compacted) -> list[str]:
    reasons: Counter[str] = Counter()
    for stay in result.stays:
        reasons[stay.reason] += stay.count
    lines = []
    if reasons:
        total = count(sum(reasons.values()), "row of zeros stays", "rows of zeros stay")
        lines += ["", f"{total}:"]
    for reason, number in reasons.most_common(MOST_REASONS):
        lines += wrap(reason, WIDTH, initial_indent=f"{number:>7,}  ", subsequent_indent=" " * 9)
    if len(reasons) > MOST_REASONS:
        rest = count(len(reasons) - MOST_REASONS, "more reason")
        lines.append(f"         and {rest} in report.json")
    return lines
