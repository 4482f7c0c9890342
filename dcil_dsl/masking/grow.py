"""Masks that change by dropping and growing.

In:   the masks in force, sizes of the weights, where to grow, how many are kept and dropped.
Out:  the new masks.
Not:  no steps, no gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcil_dsl.masking.select import Across, keep_top

LEAST = 5e-324  # the smallest number above 0


@torch.no_grad()
def drop_and_grow(
    masks: list[Tensor],
    sizes: list[Tensor],
    wanted: list[Tensor],
    num_keep: int,
    num_grow: int,
    floors: list[int],
    across: Across | None = None,
) -> list[Tensor]:
    """Of what is kept the largest stay, all but `num_grow`; where `wanted` is largest as many grow.

        survivors = the num_keep - num_grow largest sizes among the kept
        new masks = survivors, and the num_grow largest of `wanted` among all the others

    What was dropped may be grown again. All lists have one tensor a layer; the counts are of all
    of them together, `floors` the least of each. RigL, Evci et al. 2020, arXiv:1911.11134, 3(3-4).

    across  where each process has a stretch of every layer, as in keep_top
    """
    # A kept weight may be zero, as the newly grown are: still it is before all that are pruned.
    keys = [
        torch.where(mask, size.double() + LEAST, 0.0)
        for mask, size in zip(masks, sizes, strict=True)
    ]
    stay = keep_top(keys, num_keep - num_grow, [0] * len(keys), across)
    keys = [  # of what is kept there may be less than should stay
        torch.where(first & mask, torch.inf, want.double())
        for first, mask, want in zip(stay, masks, wanted, strict=True)
    ]
    return keep_top(keys, num_keep, floors, across)
