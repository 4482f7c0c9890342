"""A physics-informed network: the Poisson equation on the unit square.

In:   points inside and on the edge of the square, sensors, and what is known there.
Out:  in training mode the three terms of the loss, in evaluation mode the solution.
Not:  no data (data/sets/poisson.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PoissonNet(nn.Module):
    """u(x, y) with u_xx + u_yy = f inside, u = g on the edge, u = d at sensors.

    Points (B, 2) in 0..1, values (B,). Hidden layers of `width` with tanh, as Maddu et al. 2022
    (arXiv:2107.00940) have them for this equation.

        residual  mean (u_xx + u_yy - f)^2
        boundary  mean (u - g)^2
        data      mean (u - d)^2
    """

    def __init__(self, width: int = 50, num_hidden: int = 5):
        super().__init__()
        sizes = [2, *[width] * num_hidden]
        hidden = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)]
        self.layers = nn.Sequential(*(part for layer in hidden for part in (layer, nn.Tanh())))
        self.head = nn.Linear(width, 1)
        for layer in (*hidden, self.head):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def solution(self, points: Tensor) -> Tensor:
        u: Tensor = self.head(self.layers(2 * points - 1)).squeeze(-1)
        return u

    def forward(
        self,
        inside: Tensor,
        source: Tensor,
        edge: Tensor,
        edge_value: Tensor,
        sensor: Tensor,
        sensor_value: Tensor,
    ) -> Tensor | dict[str, Tensor]:
        if not self.training:
            return self.solution(inside)
        points = inside.detach().requires_grad_()
        (slope,) = derivative(self.solution(points), points)
        (along_x,) = derivative(slope[:, 0], points)
        (along_y,) = derivative(slope[:, 1], points)
        return {
            "residual": (along_x[:, 0] + along_y[:, 1] - source).square().mean(),
            "boundary": (self.solution(edge) - edge_value).square().mean(),
            "data": (self.solution(sensor) - sensor_value).square().mean(),
        }


def derivative(values: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """By the coordinates of each point, with a graph for the next derivative."""
    return torch.autograd.grad(values.sum(), points, create_graph=True)
