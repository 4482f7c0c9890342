"""Times of interleaved samples, and ratios of what was measured side by side.

In:   functions that take one step each.
Out:  seconds a step for each in each round; medians with the least and the largest.
Not:  a time is never compared with one from another round: load, clocks and heat drift.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def seconds_of(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean seconds of `times` calls; on a GPU between two events in its stream."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - begin) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000 / times


def interleave(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    times: int,
    deadline: float = float("inf"),
) -> dict[str, list[float]]:
    """Rounds of one sample of each: a, b, c, a, b, c, ... A sample is `times` steps.

    After `deadline` (time.perf_counter's clock) no round begins but the first.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for done in range(rounds):
        if done and time.perf_counter() > deadline:
            break
        for name, step in steps.items():
            samples[name].append(seconds_of(step, times, device))
    return samples


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(samples: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of the samples of one round, then the median over the rounds."""
    pairs = [("ours", "dense"), ("ours", "plain"), ("plain", "dense")]
    others = [name for name in samples if name not in ("dense", "plain", "ours")]
    pairs += [(name, other) for name in others for other in ("dense", "ours")]
    return {
        f"{a}/{b}": spread([x / y for x, y in zip(samples[a], samples[b], strict=True)])
        for a, b in pairs
        if a in samples and b in samples
    }
