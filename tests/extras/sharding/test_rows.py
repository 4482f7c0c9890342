"""What processes with some rows each make of units is what one with the whole weight makes."""

from dataclasses import dataclass

import pytest
import torch
from threads import Threads, shards

from dcil_dsl.extras.sharding.rows import (
    pattern_needs,
    pattern_of_rows,
    spread_to_rows,
    sum_units,
)
from dcil_dsl.masking.grow import drop_and_grow
from dcil_dsl.masking.units import keep_pattern, spread_mask, sum_in_units
from dcil_dsl.masking.views import largest_pruned, soft_scale
from dcil_dsl.model.heads import HeadShare
from dcil_dsl.model.layers import Weight
from dcil_dsl.plan.cuts import cut_weight
from dcil_dsl.words.granularity import Block, Channel, Filter, Head, Pattern
from dcil_dsl.words.scores import uniform

FILTER, CHANNEL = Filter(), Channel()
HEAD = Head()
CONVOLUTION = Weight("w", (8, 4, 3, 3), 0, 1, 1)
GROUPED = Weight("w", (12, 2, 3), 0, 1, 3)
TRANSPOSED = Weight("w", (12, 2, 3), 1, 0, 3)
THIN = Weight("w", (6, 1, 3, 3), 0, 1, 6)  # depthwise
SINGLE = Weight("w", (1, 8, 1, 1), 0, 1, 1)
MATRIX = Weight("w", (24, 8), 0, 1, 1)
WIDE = Weight("w", (8, 24), 1, 0, 1)  # the Conv1D of GPT-2
BLOCK = Block(height=4, width=2)
UNITS = {
    "filter": (CONVOLUTION, FILTER),
    "channel": (CONVOLUTION, CHANNEL),
    "block": (CONVOLUTION, BLOCK),
    "grouped filter": (GROUPED, FILTER),
    "grouped channel": (GROUPED, CHANNEL),
    "grouped block": (GROUPED, BLOCK),
    "transposed filter": (TRANSPOSED, FILTER),
    "transposed channel": (TRANSPOSED, CHANNEL),
    "transposed block": (TRANSPOSED, Block(height=2, width=4)),
    "depthwise filter": (THIN, FILTER),
    "depthwise channel": (THIN, CHANNEL),
    "one filter": (SINGLE, FILTER),
    "one filter's channel": (SINGLE, CHANNEL),
    "matrix block": (MATRIX, Block(height=3, width=8)),
    "wide block": (WIDE, BLOCK),
}
CUTS = {name: (weight.shape, cut_weight(weight, unit)) for name, (weight, unit) in UNITS.items()}
for name, weight, is_output, parts in (
    ("heads in", MATRIX, True, 3),
    ("heads out", Weight("w", (8, 8), 0, 1, 1), False, 1),
    ("heads in, wide", WIDE, True, 3),
    ("heads out, wide", WIDE, False, 1),
):
    share = HeadShare("attention", 4, is_output, parts)
    CUTS[name] = weight.shape, cut_weight(weight, HEAD, share)


@dataclass
class Place:
    start: int
    shape: tuple[int, ...]


def places(shape, num_ranks):
    each = -(-shape[0] // num_ranks)
    return [Place(min(rank * each, shape[0]), shape) for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("name", CUTS)
def test_sums_of_rows_add_up_to_those_of_units_and_masks_of_rows_to_those_of_weights(
    name, num_ranks
):
    shape, cut = CUTS[name]
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    parted = list(zip(shards(scores, num_ranks), places(shape, num_ranks), strict=True))
    sums = sum(sum_units(own, cut, place, torch.float64) for own, place in parted)
    size = scores.numel() / cut.num_units
    whole = sum_in_units(scores, cut, torch.float64)
    torch.testing.assert_close(sums / size, whole / size, rtol=1e-12, atol=0)
    counts = sum(sum_units(own > 0.5, cut, place, torch.int64) for own, place in parted)
    assert torch.equal(counts, sum_in_units(scores > 0.5, cut, torch.int64))

    kept = torch.rand(cut.num_units, generator=torch.Generator().manual_seed(1)) > 0.5
    rows = [spread_to_rows(kept, cut, place, len(own)) for own, place in parted]
    assert [len(mask) for mask in rows] == [len(own) for own, _ in parted]
    assert torch.equal(torch.cat(rows), spread_mask(kept, cut, shape))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "weight, each",
    [(CONVOLUTION, 1), (MATRIX, 1), (WIDE, 4), (TRANSPOSED, 4)],
    ids=["convolution", "matrix", "wide", "transposed"],
)
def test_patterns_are_those_of_the_whole_where_no_group_lies_on_two_ranks(weight, each, num_ranks):
    cut = cut_weight(weight, Pattern(n=2, m=4))
    assert pattern_needs(cut, weight.shape[0]) == each
    if -(-weight.shape[0] // num_ranks) % each:
        return
    score = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    parted = list(zip(shards(score, num_ranks), places(weight.shape, num_ranks), strict=True))
    cuts = [pattern_of_rows(cut, place, len(own)) for own, place in parted]
    masks = [keep_pattern(part, own, 2) for (part, _), own in zip(parted, cuts)]
    assert torch.equal(torch.cat(masks), keep_pattern(score, cut, 2))
    counts = [sum_in_units(m, own, torch.int64) for m, own in zip(masks, cuts)]
    assert torch.cat(counts).tolist() == [2] * cut.num_units


def test_a_draw_of_rows_is_that_of_the_whole_weight():
    device = torch.device("cpu")
    whole = uniform((6, 5), 2**63 + 1, device)
    rows = [uniform((2, 5), 2**63 + 1, device, start) for start in (0, 10, 20)]
    assert torch.equal(torch.cat(rows), whole)


def on_threads(num_ranks, work):
    """[work(rank, across)] of every rank."""
    threads, found = Threads(num_ranks), {}

    def run(rank):
        found[rank] = work(rank, threads.of_rank(rank))

    threads.run(run)
    return [found[rank] for rank in range(num_ranks)]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_scale_of_a_filter_that_lies_on_all_ranks_is_that_of_the_whole(axis, num_ranks):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 3, 2, generator=generator)
    mask = torch.rand(5, 3, 2, generator=generator) > 0.6

    def scale(rank, across):
        own, kept = (shards(tensor, num_ranks)[rank] for tensor in (w, mask))
        return soft_scale(own, kept, axis, across)

    scales = on_threads(num_ranks, scale)
    together = torch.cat(scales) if axis == 0 else scales[0]
    torch.testing.assert_close(together, soft_scale(w, mask, axis))
    if axis:
        assert all(torch.equal(scale, scales[0]) for scale in scales)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_drop_and_grow_what_one_drops_and_grows(num_ranks):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 3), (2, 5)]
    masks = [torch.rand(shape, generator=generator) > 0.5 for shape in shapes]
    sizes, wanted = ([torch.rand(s, generator=generator) for s in shapes] for _ in range(2))
    num_keep = sum(int(mask.sum()) for mask in masks)

    def grow(rank, across):
        own = [[shards(t, num_ranks)[rank] for t in ts] for ts in (masks, sizes, wanted)]
        return drop_and_grow(*own, num_keep, 4, [1, 1], across)

    found = on_threads(num_ranks, grow)
    alone = drop_and_grow(masks, sizes, wanted, num_keep, 4, [1, 1])
    for i, mask in enumerate(alone):
        assert torch.equal(torch.cat([rank[i] for rank in found]), mask)


def test_of_a_layer_of_which_a_rank_has_no_rows_nothing_is_largest():
    assert largest_pruned(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool)) == 0
