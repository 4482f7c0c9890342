"""Masks keep exactly the asked count, the highest scores first, ties to the earliest."""

import random

import pytest
import torch

from dcil_dsl.masking.select import keep_top


def plain(scores, num_keep, floors):
    """The same choice written with Python's sort: a list of lists of booleans."""

    def order(entry):
        layer, place, score = entry
        return -float("inf") if score != score else -score, layer, place

    entries = [(i, j, s) for i, layer in enumerate(scores) for j, s in enumerate(layer)]
    chosen = set()
    for i, floor in enumerate(floors):
        own = sorted((e for e in entries if e[0] == i), key=order)
        chosen |= {e[:2] for e in own[:floor]}
    for entry in sorted(entries, key=order):
        if len(chosen) == num_keep:
            break
        chosen.add(entry[:2])
    return [[(i, j) in chosen for j in range(len(layer))] for i, layer in enumerate(scores)]


def kept(masks):
    return [mask.flatten().tolist() for mask in masks]


def test_exactly_the_asked_count_is_kept_for_every_count():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(size, generator=generator) for size in ((3, 4), (7,), (2, 2, 5))]
    counts = [sum(int(m.sum()) for m in keep_top(scores, k, [0, 0, 0])) for k in range(40)]
    assert counts == list(range(40))


def test_the_highest_scores_are_kept_over_all_layers_together():
    masks = keep_top([torch.tensor([1.0, 5.0]), torch.tensor([[4.0], [2.0]])], 2, [0, 0])
    assert kept(masks) == [[False, True], [True, False]]


def test_masks_have_the_shapes_of_their_scores():
    scores = [torch.rand(2, 3, 1, 1), torch.rand(4), torch.rand(())]
    masks = keep_top(scores, 5, [1, 1, 1])
    assert [m.shape for m in masks] == [s.shape for s in scores]
    assert all(m.dtype == torch.bool for m in masks)


def test_of_equal_scores_the_earlier_layer_and_then_the_earlier_position_is_kept():
    ones = [torch.ones(2), torch.ones(3)]
    assert kept(keep_top(ones, 0, [0, 0])) == [[False, False], [False, False, False]]
    assert kept(keep_top(ones, 1, [0, 0])) == [[True, False], [False, False, False]]
    assert kept(keep_top(ones, 3, [0, 0])) == [[True, True], [True, False, False]]
    assert kept(keep_top(ones, 5, [0, 0])) == [[True, True], [True, True, True]]


def test_ties_at_the_threshold_do_not_push_out_higher_scores():
    masks = keep_top([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0])], 2, [0, 0])
    assert kept(masks) == [[True, False, False], [False, True]]


def test_a_floor_that_binds_takes_from_the_others():
    scores = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0])]
    assert kept(keep_top(scores, 3, [0, 0])) == [[True, True, True], [False, False]]
    assert kept(keep_top(scores, 3, [0, 1])) == [[True, True, False], [False, True]]
    assert kept(keep_top(scores, 3, [1, 2])) == [[True, False, False], [True, True]]


def test_a_floor_that_does_not_bind_changes_nothing():
    scores = [torch.tensor([3.0, 0.1]), torch.tensor([0.2, 2.0])]
    assert kept(keep_top(scores, 2, [1, 1])) == kept(keep_top(scores, 2, [0, 0]))


def test_a_floor_larger_than_its_layer_is_the_whole_layer():
    assert kept(keep_top([torch.ones(2), 2 * torch.ones(3)], 3, [5, 0])) == [
        [True, True],
        [True, False, False],
    ]


def test_a_floor_in_ties_is_filled_from_the_front():
    scores = [torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 0.0])]
    assert kept(keep_top(scores, 3, [0, 2])) == [[True, False, False], [True, True, False]]


def test_nothing_and_everything_can_be_kept():
    scores = [torch.rand(3), torch.rand(1)]
    assert not any(mask.any() for mask in keep_top(scores, 0, [0, 0]))
    assert all(mask.all() for mask in keep_top(scores, 4, [3, 1]))


def test_layers_of_one_weight_and_of_none():
    scores = [torch.tensor([3.0]), torch.empty(0), torch.tensor([5.0])]
    assert kept(keep_top(scores, 1, [0, 0, 0])) == [[False], [], [True]]
    assert kept(keep_top(scores, 2, [1, 0, 1])) == [[True], [], [True]]


def test_zero_and_minus_zero_are_equal():
    assert kept(keep_top([torch.tensor([-0.0, 0.0, -0.0])], 2, [0])) == [[True, True, False]]
    assert kept(keep_top([torch.tensor([-0.0, 1.0, 0.0])], 1, [0])) == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subnormal_numbers_are_ordered(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    step = tiny * torch.finfo(dtype).eps  # the smallest number above zero
    scores = torch.tensor([step, 0.0, 3 * step, 2 * step, tiny], dtype=dtype)
    assert scores[0] > 0
    assert kept(keep_top([scores], 3, [0])) == [[False, False, True, True, True]]


def test_infinity_is_above_every_number_and_nan_above_infinity():
    scores = torch.tensor([torch.inf, 3e38, torch.nan, 1.0])
    assert kept(keep_top([scores], 1, [0])) == [[False, False, True, False]]
    assert kept(keep_top([scores], 2, [0])) == [[True, False, True, False]]
    assert kept(keep_top([scores], 3, [0])) == [[True, True, True, False]]


def test_the_count_is_exact_with_nan_and_floors():
    scores = [torch.tensor([torch.nan, 1.0, 2.0]), torch.tensor([torch.nan, -torch.nan, 0.0])]
    counts = [sum(int(m.sum()) for m in keep_top(scores, k, [1, 1])) for k in range(2, 7)]
    assert counts == [2, 3, 4, 5, 6]


def test_a_nan_with_every_bit_set_leaves_the_others_their_floors():
    """CUDA's own NaN is 0x7fffffff."""
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert kept(keep_top([nan, torch.ones(1)], 1, [0, 1])) == [[False], [True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_kind_of_float_is_compared_exactly(dtype):
    # Neighbours: a threshold rounded to another type would take both or neither.
    one = torch.ones((), dtype=dtype)
    above = (
        torch.nextafter(one, 2 * one)
        if dtype in (torch.float32, torch.float64)
        else (one + torch.finfo(dtype).eps)
    )
    assert kept(keep_top([torch.stack([one, above, one])], 1, [0])) == [[False, True, False]]


def test_the_scores_are_not_changed():
    scores = [torch.rand(5), torch.rand(5, dtype=torch.float32)]
    before = [score.clone() for score in scores]
    keep_top(scores, 4, [2, 1])
    assert all(torch.equal(a, b) for a, b in zip(scores, before, strict=True))


def test_scores_that_do_not_lie_row_by_row_give_the_same_masks():
    score = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    strange = score.to(memory_format=torch.channels_last)
    assert torch.equal(keep_top([score], 17, [0])[0], keep_top([strange], 17, [0])[0])


@pytest.mark.parametrize(
    "num_keep, floors", [(-1, [0, 0]), (8, [0, 0]), (3, [2, 2]), (0, [1, 0])], ids=str
)
def test_what_the_floors_or_the_layers_do_not_allow_is_an_error(num_keep, floors):
    with pytest.raises(ValueError, match=f"cannot keep {num_keep} of 7 weights"):
        keep_top([torch.rand(3), torch.rand(4)], num_keep, floors)


def test_the_number_of_floors_is_the_number_of_layers():
    with pytest.raises(ValueError):
        keep_top([torch.rand(3), torch.rand(4)], 3, [0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["apart", "few", "wide", "odd"])
def test_keep_top_keeps_the_weights_of_a_plain_sort(kind, dtype):
    draw = random.Random(f"{kind} {dtype}")
    values = {
        "apart": lambda: draw.random(),
        "few": lambda: draw.choice([0.0, 0.5, 1.0]),
        "wide": lambda: 2.0 ** draw.uniform(-30, 15),
        "odd": lambda: draw.choice([0.0, -0.0, 1e-40, 6e-8, 1.0, 3.0, torch.inf]),
    }
    for _ in range(25):
        sizes = [draw.randint(1, 40) for _ in range(draw.randint(1, 5))]
        scores = [torch.tensor([values[kind]() for _ in range(n)], dtype=dtype) for n in sizes]
        floors = [draw.randint(0, 3) for _ in sizes]
        least = sum(min(floor, n) for floor, n in zip(floors, sizes, strict=True))
        num_keep = draw.randint(least, sum(sizes))
        expected = plain([score.tolist() for score in scores], num_keep, floors)
        assert kept(keep_top(scores, num_keep, floors)) == expected, (num_keep, floors)


def test_many_weights_are_kept_exactly_too():
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(100_000, generator=generator), torch.rand(7, 9_001, generator=generator)]
    masks = keep_top(scores, 16_301, [1, 1])
    order = torch.cat([score.flatten() for score in scores]).sort(descending=True).values
    assert sum(int(mask.sum()) for mask in masks) == 16_301
    for mask, score in zip(masks, scores, strict=True):
        assert score[mask].min() >= order[16_300] and score[~mask].max() <= order[16_300]
