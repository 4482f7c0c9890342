"""Nets that fit in the head."""

import random

import torch
import torch.nn.functional as F
from torch import nn


class Tiny(nn.Module):
    """stem -> norm -> conv with a shortcut -> head."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(4, classes)  # registered first, used last
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.conv(x)
        return self.head(x.mean((2, 3)))


class Drops(nn.Module):
    """What fx bakes in: F.dropout with the training flag of the moment of tracing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.dropout(self.conv(x), 0.5, self.training)
        return self.head(x.mean((2, 3)))


class Scales(nn.Module):
    """With tensors of its own, and of a part, that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.offset = torch.arange(4.0)[:, None, None]
        self.head = nn.Linear(4, 3)
        self.scale = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.head((self.conv(x) + self.conv.offset).mean((2, 3))) * self.scale


class DropsWhole(nn.Module):
    """Dropout in a part that cannot be traced, with a number of Python's own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gate = DroppingGate()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.gate(self.conv(x)).mean((2, 3)))


class DroppingGate(nn.Module):
    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return F.dropout(x, 0.5, self.training) * random.random()


class Auxiliary(nn.Module):
    """Two outputs in training, one in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.side = nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return (self.head(x), self.side(x)) if self.training else self.head(x)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


def images(batch=4, size=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)
