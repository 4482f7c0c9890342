"""A small multilayer perceptron for tabular data.

In:   rows of numbers, (B, features).
Out:  (B, num_classes); `BUILDERS`, as zoo/spec.py names them.
Not:  no normalization: the data are standardized.
"""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers with ReLU."""

    def __init__(self, num_classes: int = 1, features: int = 10, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(x))
        return y


BUILDERS = {"mlp": MLP}
