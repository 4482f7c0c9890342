"""The inputs of a path that runs on less than the others do.

In:   what the model is called with.
Out:  the first rows of every tensor in it, images of a smaller size.
Not:  no weights.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree


def subsample_input(value: object, batch: float, size: float) -> object:
    """The first `batch` share of the rows, at least one; images (B, C, H, W) at `size` of their
    height and width, each new pixel the mean of what it covers.

    Tensors in lists and dictionaries alike; what is no tensor stays. Which rows come first is
    chance where batches are shuffled.
    """

    def thin(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if batch < 1:
            leaf = leaf[: num_rows(leaf.shape[0], batch)]
        if size < 1 and leaf.dim() == 4 and leaf.is_floating_point():
            shape = [max(1, round(side * size)) for side in leaf.shape[2:]]
            leaf = F.interpolate(leaf, shape, mode="area")
        return leaf

    return pytree.tree_map(thin, value)


def num_rows(count: int, batch: float) -> int:
    """How many of `count` rows a share is, rounded up."""
    return math.ceil(count * batch - 1e-9)
