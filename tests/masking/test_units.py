"""Units of several weights: what they score, and which weights their masks keep. By hand."""

import random

import pytest
import torch

from dcil_dsl.masking.units import keep_pattern, mean_in_units, spread_mask, sum_in_units
from dcil_dsl.plan.plan import Cut

FILTERS = Cut(shape=(2, 4), units=(0,))  # two outputs, two inputs, a kernel of two
CHANNELS = Cut(shape=(2, 2, 2), units=(1,))
W = torch.tensor([[[1.0, -1.0], [2.0, 0.0]], [[3.0, 1.0], [-1.0, 1.0]]])  # (O, I, k)


def score_units(scores, cuts):
    sums = sum(sum_in_units(score, cut, torch.float64) for score, cut in zip(scores, cuts))
    return mean_in_units(sums, cuts)


def num_in_unit(mask, cut):
    return sum_in_units(mask, cut, torch.int64)


def test_a_filter_scores_the_mean_square_or_the_mean_size_of_its_weights():
    """The authors' filter mode: mean_j w_ij^2 with L2, mean_j |w_ij| with L1."""
    assert score_units([W**2], [FILTERS]).tolist() == [6 / 4, 12 / 4]
    assert score_units([W.abs()], [FILTERS]).tolist() == [4 / 4, 6 / 4]


def test_a_channel_scores_what_all_filters_read_of_an_input():
    assert score_units([W**2], [CHANNELS]).tolist() == [(1 + 1 + 9 + 1) / 4, (4 + 0 + 1 + 1) / 4]


def test_a_unit_of_two_weights_scores_the_mean_over_both():
    """Two heads: rows of the first weight, columns of the second; of unlike sizes."""
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    second = torch.tensor([[10.0, 20.0]])
    cuts = [Cut(shape=(2, 2), units=(0,)), Cut(shape=(2,), units=(0,))]
    assert score_units([first, second], cuts).tolist() == [(1 + 2 + 10) / 3, (3 + 4 + 20) / 3]


def test_a_unit_of_one_weight_scores_that_weight():
    assert score_units([torch.tensor([[1.0], [5.0]])], [Cut(shape=(2,), units=(0,))]).tolist() == [
        1,
        5,
    ]


def test_the_mask_of_a_unit_is_that_of_all_its_weights():
    mask = spread_mask(torch.tensor([True, False]), FILTERS, W.shape)
    assert mask.tolist() == [[[True, True], [True, True]], [[False, False], [False, False]]]
    mask = spread_mask(torch.tensor([False, True]), CHANNELS, W.shape)
    assert mask.tolist() == [[[False, False], [True, True]], [[False, False], [True, True]]]


def test_a_block_is_a_tile_at_one_position_of_the_kernel():
    cut = Cut(shape=(2, 2, 2, 2, 2), units=(0, 2, 4))  # (4, 4, 2) in tiles of 2 x 2
    scores = torch.arange(32.0).view(4, 4, 2)
    assert score_units([scores], [cut])[0] == (0 + 2 + 8 + 10) / 4
    assert score_units([scores], [cut])[-1] == (21 + 23 + 29 + 31) / 4
    kept = torch.zeros(8, dtype=torch.bool)
    kept[1] = True
    mask = spread_mask(kept, cut, (4, 4, 2))
    assert scores[mask].tolist() == [1, 3, 9, 11]


def test_a_unit_holds_as_many_as_its_weights_do():
    assert num_in_unit(W == 1, FILTERS).tolist() == [1, 2]
    assert num_in_unit(W < 0, CHANNELS).tolist() == [1, 1]


# -- N:M ------------------------------------------------------------------------------------


def test_of_every_four_inputs_the_two_largest_stay():
    w = torch.tensor([[4.0, -3.0, 1.0, 2.0, 0.0, 1.0, 0.0, -9.0]])
    mask = keep_pattern(w.abs(), Cut(shape=(2, 4), units=(0,)), 2)
    assert mask.tolist() == [[True, True, False, False, False, True, False, True]]


def test_the_four_of_a_convolution_are_input_channels_at_one_position_of_the_kernel():
    w = torch.tensor([[[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]]])  # (1, 4, 2)
    mask = keep_pattern(w, Cut(shape=(1, 4, 2), units=(0, 2)), 2)
    assert mask[0, :, 0].tolist() == [False, False, True, True]
    assert mask[0, :, 1].tolist() == [True, True, False, False]


def test_of_equal_weights_the_earlier_stay_and_nan_before_all():
    ones = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, torch.inf, torch.nan, torch.nan]])
    mask = keep_pattern(ones, Cut(shape=(2, 4), units=(0,)), 2)
    assert mask.tolist() == [[True, True, False, False, False, False, True, True]]


@pytest.mark.parametrize("n, m", [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)])
def test_exactly_n_of_each_m_stay_as_a_plain_sort_has_it(n, m):
    chance = random.Random(n * m)
    values = [[chance.choice([0.0, -0.0, 0.5, 1.0, 3.0]) for _ in range(3 * m)] for _ in range(5)]
    mask = keep_pattern(torch.tensor(values), Cut(shape=(15, m), units=(0,)), n)
    for row, kept in zip(values, mask.tolist(), strict=True):
        for start in range(0, len(row), m):
            order = sorted(range(start, start + m), key=lambda i: (-row[i], i))
            assert [i for i in range(start, start + m) if kept[i]] == sorted(order[:n])
    assert num_in_unit(mask, Cut(shape=(15, m), units=(0,))).tolist() == [n] * 15


def test_a_weight_that_does_not_lie_row_by_row_is_cut_alike():
    w = torch.rand(4, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    strange = w.to(memory_format=torch.channels_last)
    filters, fours = Cut(shape=(4, 32), units=(0,)), Cut(shape=(8, 4, 4), units=(0, 2))
    assert torch.equal(score_units([w], [filters]), score_units([strange], [filters]))
    assert torch.equal(keep_pattern(w, fours, 2), keep_pattern(strange, fours, 2))


def test_scores_of_half_precision_are_added_up_in_full():
    w = torch.full((1, 4096), 0.01, dtype=torch.bfloat16)
    score = w.detach().abs()
    assert score_units([score], [Cut(shape=(1, 4096), units=(0,))]).item() == score[0, 0].item()
