"""Subsample the inputs of a path: a part of the batch, smaller images."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree


def subsample_input(value: object, batch: float, size: float) -> object:
    """The first `batch` share of the rows, at least one; images (B, C, H, W) at `size` of their
    height and width, each new pixel the mean of the area it covers.

    Tensors may be in lists and dictionaries; other values do not change.
    """

    def subsample(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if batch < 1:
            leaf = leaf[: num_rows(leaf.shape[0], batch)]
        if size < 1 and leaf.dim() == 4 and leaf.is_floating_point():
            shape = [max(1, round(side * size)) for side in leaf.shape[2:]]
            leaf = F.interpolate(leaf, shape, mode="area")
        return leaf

    return pytree.tree_map(subsample, value)


def num_rows(count: int, batch: float) -> int:
    """The number of rows in a share of `count` rows, rounded up."""
    return math.ceil(count * batch - 1e-9)
