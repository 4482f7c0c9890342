"""Whether all ranks have the same masks, without sending one.

In:   boolean masks; what every rank has made of its own.
Out:  64 bits a mask; MasksDiffer, which names layers and ranks.
Not:  nothing is repaired: a rank with other masks has trained another network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from dcil_dsl.training.metrics import SparsityError

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed number
MAX_NAMED = 5


class MasksDiffer(SparsityError):
    """Ranks disagree on a mask."""


def fingerprints(masks: Mapping[str, Tensor]) -> Tensor:
    """int64 (number of masks,), on the masks' device; no value is read by the host."""
    return torch.stack([fingerprint(mask) for mask in masks.values()])


def fingerprint(mask: Tensor) -> Tensor:
    """64 bits of a boolean tensor: the sum over its words of eight of mix(word + place * GOLDEN).

    mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014, figure 16), a bijection in which
    each bit of the input moves half of the output's. Two masks that differ in one word never
    agree; others do by a chance of about 2^-64.
    """
    flat = mask.reshape(-1).view(torch.uint8)
    words = pad(flat, (0, -flat.numel() % 8)).view(torch.int64)
    places = torch.arange(1, len(words) + 1, device=mask.device)
    return _mix(words + places * GOLDEN).sum()


def compare_fingerprints(names: Sequence[str], prints: Tensor, step: int) -> None:
    """prints (ranks, masks) as of `step`. MasksDiffer if a column is not one number."""
    wrong = []
    for name, column in zip(names, prints.t().tolist(), strict=True):
        usual = max(column, key=column.count)
        odd = [str(rank) for rank, value in enumerate(column) if value != usual]
        if odd:
            wrong.append(f"`{name}` on rank {', '.join(odd)}")
    if wrong:
        shown = wrong[:MAX_NAMED]
        if more := len(wrong) - len(shown):
            shown.append(f"and {more} more")
        raise MasksDiffer(
            f"at step {step} the ranks do not have the same masks, which they compute from equal "
            f"weights: {'; '.join(shown)} differs from the others"
        )


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of an unsigned number: what comes in from the left is zero."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
