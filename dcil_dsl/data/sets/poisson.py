"""`poisson`: points of a Poisson problem whose solution is known.

    u_xx + u_yy = f on the unit square,   u = cos(w x) sin(w y),   f = -2 w^2 u,   w = 2 pi

Maddu et al. 2022, arXiv:2107.00940, section 4.1: the gradient of the residual outweighs that of
the boundary by the fourth power of w. The sensors, whose values have noise, are an addition here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset as Examples

from dcil_dsl.data.dataset import Dataset

W = 2 * math.pi
NUM_TRAIN, SIDE = 2560, 50  # points; of the grid that is held out
NUM_SENSORS, NOISE = 64, 0.01


def solution(points: Tensor) -> Tensor:
    return torch.cos(W * points[:, 0]) * torch.sin(W * points[:, 1])


class Points(Examples[tuple[dict[str, Tensor], Tensor]]):
    """An item: a point inside, one on the edge, a sensor; and the solution at the first."""

    def __init__(self, inside: Tensor, edge: Tensor, sensor: Tensor, noise: Tensor):
        self.known = solution(inside).float()
        self.given = {
            "inside": inside,
            "source": -2 * W**2 * solution(inside),
            "edge": edge,
            "edge_value": solution(edge),
            "sensor": sensor,
            "sensor_value": solution(sensor) + noise,
        }
        self.given = {name: value.float() for name, value in self.given.items()}

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {name: value[index] for name, value in self.given.items()}, self.known[index]


def poisson(folder: None, channels: int) -> Dataset:
    """Points drawn once; the solution is compared on the centres of a grid of 50 by 50."""
    draw = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    edge = uniform(NUM_TRAIN, 2)
    side = torch.arange(NUM_TRAIN) % 4
    edge[torch.arange(NUM_TRAIN), side // 2] = (side % 2).double()
    of_sensors = torch.arange(NUM_TRAIN) % NUM_SENSORS
    sensor = uniform(NUM_SENSORS, 2)[of_sensors]
    noise = NOISE * torch.randn(NUM_SENSORS, generator=draw, dtype=torch.float64)[of_sensors]
    line = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    grid = torch.cartesian_prod(line, line)
    rows = torch.arange(len(grid)) % NUM_TRAIN
    return Dataset(
        "poisson",
        Points(uniform(NUM_TRAIN, 2), edge, sensor, noise),
        Points(grid, edge[rows], sensor[rows], noise[rows]),
        task="physics",
    )
