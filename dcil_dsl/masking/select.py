"""Scores to masks: keep exactly the asked count of weights, the highest scores first.

In:   scores of one budget's layers, the count to keep, the least count of each layer.
Out:  boolean masks, True = kept, on the scores' own device.
Not:  nothing here knows percentages, layers' names or time.

The threshold is found by radix selection on the bits of the scores: non-negative floats
order as their bit patterns read as integers do. No weight is copied to the host, nothing is
sorted, and the count is exact whatever the ties. Where each of several processes holds a part
of every layer, counts alone are exchanged (Across), and the parts of the masks are the parts of
what one process with the whole layers would make.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

DIGIT_BITS = 11  # 2,048 bins a pass: three passes read all 31 bits of a float32 score


class Across(Protocol):
    """Several processes that choose together; rank r holds the r-th stretch of every layer.

    Every rank calls the same methods in the same order, with tensors of the same shape.
    """

    rank: int

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over the ranks, in the shape of `counts`."""

    def gather(self, values: Tensor) -> Tensor:
        """(ranks, *shape): the values of each rank, in their order."""


@torch.no_grad()
def keep_top(
    scores: list[Tensor], num_keep: int, floors: list[int], across: Across | None = None
) -> list[Tensor]:
    """Masks that keep `num_keep` weights in all and at least `floors[i]` in layer i.

    Each layer's highest scores fill its floor, the highest of all the others fill the rest:
    no other choice within the floors keeps a larger sum of scores. Among equal scores the
    earlier layer, then the earlier position, is kept, so equal weights give equal masks on
    every machine. All scores are of one dtype; float16 and bfloat16 are compared as float32.
    NaN counts as the highest score.

    across  where each rank has its stretch of the scores of every layer, which may be empty:
            `num_keep` and `floors` are of all the stretches together

    Raises ValueError where the floors ask for more than `num_keep`, or `num_keep` is out
    of range; across ranks, which do not know each other's sizes, this is the caller's to know.
    """
    if across is None:
        sizes = [score.numel() for score in scores]
        floors = [min(floor, size) for floor, size in zip(floors, sizes, strict=True)]
        if not sum(floors) <= num_keep <= sum(sizes):
            raise ValueError(
                f"cannot keep {num_keep} of {sum(sizes)} weights with floors {floors}"
            )
    keys = [_sortable(score.flatten()) for score in scores]
    _raise_highest([key for key, floor in zip(keys, floors, strict=True) if floor == 1], across)
    for key, floor in zip(keys, floors, strict=True):
        if floor > 1:
            key.masked_fill_(_top([key], floor, across)[0], torch.iinfo(key.dtype).max)
    masks = _top(keys, num_keep, across)
    return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]


def _sortable(score: Tensor) -> Tensor:
    """Bits of non-negative numbers, in the order of the numbers: int32, or int64 for float64.

    The largest value of its type is above all of them.
    """
    if score.dtype == torch.float64:
        bits = score.view(torch.int64)
    else:
        bits = score.float().view(torch.int32)
    above = torch.iinfo(bits.dtype).max
    # The sign of -0.0 and of a NaN is no order. A device's NaN has all the other bits set: below
    # what is raised for a floor it must stay.
    return (bits & above).clamp_(max=above - 1)


def _raise_highest(keys: list[Tensor], across: Across | None) -> None:
    """Put the highest of each layer above all others, in place; this is the usual floor.

    Of equal keys argmax takes the first, and so the earliest rank.
    """
    if across is None:
        for key in keys:
            key.index_fill_(0, key.argmax().view(1), torch.iinfo(key.dtype).max)
    elif keys:
        tops = [key.max() if key.numel() else key.new_full((), -1) for key in keys]
        owners = across.gather(torch.stack(tops)).argmax(dim=0)
        for key, owner in zip(keys, owners, strict=True):
            if key.numel():
                place = key.argmax().view(1)
                own = torch.where(owner == across.rank, torch.iinfo(key.dtype).max, key[place])
                key.index_copy_(0, place, own)


def _top(keys: list[Tensor], count: int, across: Across | None = None) -> list[Tensor]:
    """The `count` highest keys over all lists, ties to the earliest."""
    if count == 0:
        return [torch.zeros_like(key, dtype=torch.bool) for key in keys]
    threshold, num_ties, num_wanted = _threshold(keys, count, across)
    masks = [key >= threshold for key in keys]
    # The only time that the host waits for a device, to be spared a pass over all keys; for one
    # layer by itself, of which a rule may have many, the pass is cheaper than the wait.
    is_cheap = len(keys) == 1 and threshold.is_cuda
    if not is_cheap and num_ties == num_wanted:
        return masks
    ties = [key == threshold for key in keys]
    num_in = torch.stack([tie.sum() for tie in ties])
    num_in = num_in[None] if across is None else across.gather(num_in)  # (rank, layer)
    rank, in_layer = 0 if across is None else across.rank, num_in.sum(0)
    num_before = in_layer.cumsum(0) - in_layer + num_in[:rank].sum(0)
    for mask, tie, before in zip(masks, ties, num_before, strict=True):
        mask &= ~tie | (before + tie.cumsum(0) <= num_wanted)
    return masks


def _threshold(
    keys: list[Tensor], count: int, across: Across | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The count-th highest key, how many keys equal it, how many of those are wanted.

    Digit by digit from the top: count how many keys have each digit among those that agree
    with the digits found so far, walk down until the count is reached, go on in that bin.
    """
    device, dtype = keys[0].device, keys[0].dtype
    wanted = torch.full((1,), count, device=device)  # torch.tensor would wait for a copy
    prefix = torch.zeros(1, dtype=dtype, device=device)
    top = shift = torch.iinfo(dtype).bits - 1
    while shift > 0:
        bits = min(DIGIT_BITS, shift)
        shift -= bits
        histogram = sum(_count_digits(key, prefix, shift, bits, top) for key in keys)
        if across is not None:
            histogram = across.sum(histogram)
        above = histogram.flip(0).cumsum(0).flip(0)  # keys with this digit or a higher one
        digit = (above >= wanted).sum(0, keepdim=True) - 1
        # Not histogram[digit]: to index by a tensor of one number, the host reads the number.
        num_equal = histogram.index_select(0, digit)
        wanted = wanted - (above.index_select(0, digit) - num_equal)
        prefix = prefix | (digit << shift).to(dtype)
        if not prefix.is_cuda:
            # On the host the keys that agree are taken out, few after the first digit; on a
            # device their number would have to be waited for.
            keys = [key.masked_select((key >> shift) == (prefix >> shift)) for key in keys]
    return prefix, num_equal, wanted


def _count_digits(key: Tensor, prefix: Tensor, shift: int, bits: int, top: int) -> Tensor:
    """How many of the keys that agree with `prefix` have each digit."""
    bins = 1 << bits
    digit = key >> shift
    if shift + bits < top:
        digit &= bins - 1
        if key.is_cuda:  # keys that do not agree fall in one bin more, which is dropped
            agrees = (key >> (shift + bits)) == (prefix >> (shift + bits))
            digit = torch.where(agrees, digit, bins)
    if key.is_cuda:
        # bincount asks the host for the largest value; histc does not. On integers it is exact.
        return torch.histc(digit, bins=bins + 1, min=0, max=bins + 1)[:bins].long()
    return torch.bincount(digit, minlength=bins)
