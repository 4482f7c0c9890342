"""Scores to masks: keep exactly the requested count of weights, the highest scores first.

In:   scores of the layers that share a budget, the count or budget to keep, the least and the
      most that each layer keeps. An entry is a weight, or a unit of several (units.py).
Out:  boolean masks, True = kept, on the device of the scores.
Not:  no percentages, no names of layers, no time.

Radix selection on the bits of the scores finds the threshold: non-negative floats are in the
order of their bit patterns, read as integers. No weight is copied to the host, nothing is sorted,
and the count is exact whatever the ties. Where each of several processes holds some rows of every
layer, they exchange only counts (Across), and each computes the same rows of the same masks as one
process with the whole layers would.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt
from typing import Protocol

import torch
from torch import Tensor

DIGIT_BITS = 11  # 2,048 bins a pass: three passes read all 31 bits of a float32 score
LEAST = 5e-324  # the smallest number above 0

Bounds = Sequence[tuple[list[int], int, int]]  # see keep_top


class Across(Protocol):
    """Several processes that choose together; rank r holds the r-th stretch of every layer.

    Every rank calls the same methods in the same order, with tensors of the same shape.
    """

    @property
    def rank(self) -> int: ...

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over the ranks, in the shape of `counts`."""

    def gather(self, values: Tensor) -> Tensor:
        """(ranks, *shape): the values of each rank, in their order."""


@torch.no_grad()
def keep_top(
    scores: list[Tensor],
    num_keep: int,
    floors: list[int],
    across: Across | None = None,
    costs: list[int] | None = None,
    ceilings: list[int] | None = None,
    bounds: Bounds = (),
    always: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Masks that keep `num_keep` weights in all and at least `floors[i]` in layer i.

    Each layer's highest scores fill its floor, and the highest of all other scores fill the rest:
    no other choice within the floors keeps a larger sum of scores. Among equal scores the
    earlier layer, then the earlier position, is kept, so equal weights give equal masks on
    every machine. All scores have one dtype; float16 and bfloat16 are compared as float32.
    NaN counts as the highest score.

    across    each rank has its stretch of the scores of every layer, which may be empty;
              `num_keep`, `floors` and `ceilings` count all stretches together
    costs     how much of `num_keep`, which is then a budget, one entry of each layer takes: from
              the highest score down, each entry that still fits is kept, so that the remainder
              is less than the cost of any pruned entry. None: 1
    ceilings  the largest number of entries that each layer keeps. None: all
    bounds    (indices of layers in rising order, least, most): these layers together keep
              least to most entries. No layer is in two bounds; with bounds all costs are equal
    always    masks of entries that come before all others of their layer; a layer's floor is at
              least their number. Empty: none

    Raises ValueError where the floors exceed `num_keep` or the ceilings, or `num_keep` is out of
    range. Across ranks, which do not know each other's sizes, the caller must check this.
    """
    costs = costs or [1] * len(scores)
    if across is None:
        floors, ceilings = _within(scores, num_keep, floors, costs, ceilings, bounds)
    keys = [_sortable(score.flatten()) for score in scores]
    for key, first in zip(keys, always, strict=bool(always)):
        key.masked_fill_(first.flatten(), torch.iinfo(key.dtype).max)
    # Under a ceiling only the highest entries of a layer compete.
    parts: list[Tensor | None] = [None] * len(keys)
    if ceilings is not None:
        sizes = _counts(scores, across)
        parts = [
            _top([key], most, across)[0] if most < size else None
            for key, most, size in zip(keys, ceilings, sizes, strict=True)
        ]
        keys = [
            key if part is None else key.masked_select(part)
            for key, part in zip(keys, parts, strict=True)
        ]
    _raise_highest([key for key, floor in zip(keys, floors, strict=True) if floor == 1], across)
    for key, floor in zip(keys, floors, strict=True):
        if floor > 1:
            key.masked_fill_(_top([key], floor, across)[0], torch.iinfo(key.dtype).max)
    for places, least, most in bounds:
        _bind(keys, parts, places, least, most, across)
    if len(set(costs)) == 1:
        masks = _top(keys, num_keep // costs[0], across)
    else:
        masks = _fill(keys, num_keep, costs, across)
    masks = [
        mask if part is None else part.masked_scatter(part, mask)
        for mask, part in zip(masks, parts, strict=True)
    ]
    return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]


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
    """Drop the `num_grow` smallest of the kept weights, and grow as many where `wanted` is largest.

        survivors = the num_keep - num_grow largest sizes among the kept weights
        new masks = survivors, and the num_grow largest of `wanted` among all other weights

    A dropped weight may grow again. All lists have one tensor per layer; the counts are of all
    layers together, `floors` the least of each. RigL, Evci et al. 2020, arXiv:1911.11134, 3(3-4).

    across  each process has a stretch of every layer, as in keep_top
    """
    # A kept weight may be zero, as newly grown ones are; it still comes before all pruned weights.
    keys = [
        torch.where(mask, size.double() + LEAST, 0.0)
        for mask, size in zip(masks, sizes, strict=True)
    ]
    stay = keep_top(keys, num_keep - num_grow, [0] * len(keys), across)
    keys = [  # there may be fewer kept weights than should stay
        torch.where(first & mask, torch.inf, want.double())
        for first, mask, want in zip(stay, masks, wanted, strict=True)
    ]
    return keep_top(keys, num_keep, floors, across)


def _bind(
    keys: list[Tensor],
    parts: list[Tensor | None],
    places: list[int],
    least: int,
    most: int,
    across: Across | None,
) -> None:
    """Let only the `most` highest entries of these layers compete, and raise the `least` highest
    above all others, after those that the layers' own floors raised. In place."""
    if most < sum(_counts([keys[i] for i in places], across)):
        for i, chosen in zip(places, _top([keys[i] for i in places], most, across), strict=True):
            part = parts[i]
            keys[i] = keys[i].masked_select(chosen)
            parts[i] = chosen if part is None else part.masked_scatter(part, chosen)
    for i, chosen in zip(places, _top([keys[i] for i in places], least, across), strict=True):
        keys[i].masked_fill_(chosen, torch.iinfo(keys[i].dtype).max)


def _within(
    scores: list[Tensor],
    num_keep: int,
    floors: list[int],
    costs: list[int],
    ceilings: list[int] | None,
    bounds: Bounds,
) -> tuple[list[int], list[int] | None]:
    """Floors and ceilings within the sizes of the layers; ValueError where they cannot be met."""
    sizes = [score.numel() for score in scores]
    floors = [min(floor, size) for floor, size in zip(floors, sizes, strict=True)]
    most = [min(most, size) for most, size in zip(ceilings or sizes, sizes, strict=True)]
    low, high = _cost(floors, costs), _cost(most, costs)
    for places, at_least, at_most in bounds:
        own, all_own = (sum(counts[i] for i in places) for counts in (floors, most))
        low += max(at_least - own, 0) * costs[0]
        high -= max(all_own - at_most, 0) * costs[0]
    if not low <= num_keep <= high or any(map(gt, floors, most)):
        limits = f"floors {floors}" + (f" and ceilings {most}" if ceilings else "")
        raise ValueError(f"cannot keep {num_keep} of {_cost(sizes, costs)} weights with {limits}")
    return floors, None if most == sizes else most


def _cost(counts: list[int], costs: list[int]) -> int:
    return sum(count * cost for count, cost in zip(counts, costs, strict=True))


def _sortable(score: Tensor) -> Tensor:
    """Bits of non-negative numbers, in the order of the numbers: int32, or int64 for float64.

    The largest value of the type is above all of them.
    """
    if score.dtype == torch.float64:
        bits = score.view(torch.int64)
    else:
        bits = score.float().view(torch.int32)
    above = torch.iinfo(bits.dtype).max
    # The signs of -0.0 and NaN do not count. On a device, NaN has all other bits set; it must
    # stay below the entries that are raised for a floor.
    return (bits & above).clamp_(max=above - 1)


def _raise_highest(keys: list[Tensor], across: Across | None) -> None:
    """Put the highest key of each layer above all others, in place: the usual floor, one entry.

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
    threshold, num_ties, num_wanted = _threshold(keys, count, [1] * len(keys), across)
    # The only place where the host waits for a device; the wait saves a pass over all keys. For a
    # single layer, of which a rule may have many, the pass is cheaper than the wait.
    is_cheap = len(keys) == 1 and threshold.is_cuda
    if not is_cheap and num_ties == num_wanted:
        return [key >= threshold for key in keys]
    return _above(threshold, num_wanted, keys, [1] * len(keys), across)[0]


def _fill(keys: list[Tensor], budget: int, costs: list[int], across: Across | None) -> list[Tensor]:
    """From the highest key down, ties to the earliest, every entry that still fits.

    After an entry that does not fit, no entry of the same or a higher cost fits. So a pass keeps
    the highest entries up to the first that does not fit, and the next pass continues with the
    lists that are cheap enough for the remainder: there are at most as many passes as costs.
    """
    masks = [torch.zeros_like(key, dtype=torch.bool) for key in keys]
    sizes, active = _counts(keys, across), list(range(len(keys)))
    while active:
        own, own_costs = [keys[i] for i in active], [costs[i] for i in active]
        left = budget - _cost([sizes[i] for i in active], own_costs)
        if left >= 0:
            chosen = [torch.ones_like(key, dtype=torch.bool) for key in own]
        elif budget == 0:
            break
        else:
            threshold, _, wanted = _threshold(own, budget, own_costs, across)
            chosen, wanted = _above(threshold, wanted, own, own_costs, across)
            left = int(wanted)
        for i, mask in zip(active, chosen, strict=True):
            masks[i] = mask
        # The entries kept of a cheaper list are its highest: the next pass keeps them again.
        kept = _counts([mask[mask] for mask in masks], across)
        active = [i for i in active if costs[i] <= left and kept[i] < sizes[i]]
        budget = left + sum(costs[i] * kept[i] for i in active)
    return masks


def _above(
    threshold: Tensor, wanted: Tensor, keys: list[Tensor], costs: list[int], across: Across | None
) -> tuple[list[Tensor], Tensor]:
    """All keys above the threshold, and of those equal to it the earliest that fit into `wanted`,
    list by list; and the rest of `wanted`."""
    ties = [key == threshold for key in keys]
    # Ties are few, so the host lists their places; for a device it would have to wait.
    places = [tie.nonzero().flatten() for tie in ties] if not threshold.is_cuda else []
    if places:
        num_in = torch.tensor([len(own) for own in places])
    else:
        num_in = torch.stack([tie.sum() for tie in ties])
    num_in = num_in[None] if across is None else across.gather(num_in)  # (rank, layer)
    rank = 0 if across is None else across.rank
    masks = []
    for i, (key, tie, cost) in enumerate(zip(keys, ties, costs, strict=True)):
        fit, before = wanted // cost, num_in[:rank, i].sum()
        mask = key > threshold
        if places:
            mask[places[i][: max(int(fit - before), 0)]] = True
        else:
            mask |= tie & (before + tie.cumsum(0) <= fit)
        masks.append(mask)
        wanted = wanted - cost * torch.minimum(fit, num_in[:, i].sum())
    return masks, wanted


def _counts(tensors: list[Tensor], across: Across | None) -> list[int]:
    """How many entries each has, on all ranks together."""
    counts = [tensor.numel() for tensor in tensors]
    if across is None:
        return counts
    total: list[int] = across.sum(torch.tensor(counts, device=tensors[0].device)).tolist()
    return total


def _threshold(
    keys: list[Tensor], budget: int, costs: list[int], across: Across | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The key at which the keys from the highest down reach the budget; the cost of all keys equal
    to it, and how much of the budget is left for those.

    Digit by digit from the top: among the keys that agree with the digits found so far, add up
    the cost of the keys with each digit, walk down until the budget is reached, and continue in
    that bin.
    """
    device, dtype = keys[0].device, keys[0].dtype
    wanted = torch.full((1,), budget, device=device)  # torch.tensor would wait for a copy
    prefix = torch.zeros(1, dtype=dtype, device=device)
    top = shift = torch.iinfo(dtype).bits - 1
    while shift > 0:
        bits = min(DIGIT_BITS, shift)
        shift -= bits
        histogram = torch.zeros(1 << bits, dtype=torch.int64, device=device)
        for key, cost in zip(keys, costs, strict=True):
            histogram = histogram + cost * _count_digits(key, prefix, shift, bits, top)
        if across is not None:
            histogram = across.sum(histogram)
        above = histogram.flip(0).cumsum(0).flip(0)  # keys with this digit or a higher one
        digit = (above >= wanted).sum(0, keepdim=True) - 1
        # Not histogram[digit]: the host would read the number to index by it.
        num_equal = histogram.index_select(0, digit)
        wanted = wanted - (above.index_select(0, digit) - num_equal)
        prefix = prefix | (digit << shift).to(dtype)
        if not prefix.is_cuda:
            # On the host select the keys that agree, few after the first digit; a device would
            # have to be waited for. By index: masked_select is four times as slow.
            agree = [((key >> shift) == (prefix >> shift)).nonzero().flatten() for key in keys]
            keys = [key.index_select(0, places) for key, places in zip(keys, agree, strict=True)]
    return prefix, num_equal, wanted


def _count_digits(key: Tensor, prefix: Tensor, shift: int, bits: int, top: int) -> Tensor:
    """How many of the keys that agree with `prefix` have each digit."""
    bins = 1 << bits
    digit = key >> shift
    if shift + bits < top:
        digit &= bins - 1
        if key.is_cuda:  # keys that do not agree go into one more bin, which is dropped
            agrees = (key >> (shift + bits)) == (prefix >> (shift + bits))
            digit = torch.where(agrees, digit, bins)
    if key.is_cuda:
        # bincount makes the host read the largest value; histc does not, and is exact on integers.
        return torch.histc(digit, bins=bins + 1, min=0, max=bins + 1)[:bins].long()
    return torch.bincount(digit, minlength=bins)
