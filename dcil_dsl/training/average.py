"""An exponential moving average of the weights, where the recipe has `ema`.

In:   a dual graph and the decay.
Out:  mean <- decay * mean + (1 - decay) * weight after every update, for every floating tensor of
      the graph's state, running statistics included; the graph with the means in place.
Not:  masks and scores are not averaged. A mean is evaluated and exported under the current masks,
      so it is exactly as sparse as the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcil_dsl.compiler.privatize import is_of_mean
from dcil_dsl.compiler.weight_state import PrunedModule


@dataclass(frozen=True)
class Average:
    """The tensors that training changes and their means, by name; both empty without `ema`."""

    live: dict[str, Tensor]
    mean: dict[str, Tensor]


def not_averaged(dual: PrunedModule) -> set[str]:
    """Scores, and the averages of paths that teach."""
    scores = {f"{name}_score" for name in dual.score_state}
    return scores | {name for name in dual.state_dict() if is_of_mean(name, dual.plan)}


def start_average(dual: nn.Module, decay: float | None, exclude: Collection[str] = ()) -> Average:
    """The average before the first update: copies of the weights, except those named."""
    if decay is None:
        return Average({}, {})
    live = {
        name: t
        for name, t in dual.state_dict().items()
        if t.is_floating_point() and name not in exclude
    }
    return Average(live, {name: t.clone() for name, t in live.items()})


@torch.no_grad()
def update_average(average: Average, decay: float | None) -> None:
    """One step of the recursion above."""
    if decay is not None and average.mean:
        means, live = list(average.mean.values()), list(average.live.values())
        torch._foreach_lerp_(means, live, 1 - decay)


@torch.no_grad()
def deploy_average(average: Average) -> None:
    """Overwrite the weights with their means."""
    for name, mean in average.mean.items():
        average.live[name].copy_(mean)


@contextmanager
def deployed(average: Average) -> Iterator[None]:
    """Evaluate with the means: they replace the weights while the `with` is open."""
    kept = {name: t.clone() for name, t in average.live.items()}
    deploy_average(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                average.live[name].copy_(tensor)
