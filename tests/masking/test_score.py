"""What a weight scores, held against the formulas written plainly in float64."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.score import (
    add_gradient_score,
    score_weights,
    without_sign,
)
from dcil_dsl.masking.select import keep_top
from dcil_dsl.masking.split import Scoring, split_weight
from dcil_dsl.words.scores import L2, Draw, Magnitude, uniform
from dcil_dsl.words.targets import Lamp
from dcil_dsl.words.units import Percent

DRAW = Draw(seed=0, parameter="w", step=0)
lamp_scores = Lamp(sparsity=Percent(0.5)).rescaled
FLOATS = st.floats(width=32, allow_nan=False)


def added(score, w, grad, *, gain=1.0, unscale=1.0):
    total = torch.zeros(len(w))
    w, grad = torch.tensor(w), torch.tensor(grad)
    add_gradient_score(total, w, grad, score, torch.tensor(unscale), gain)
    return total.tolist()


def test_magnitude_is_the_absolute_value_and_l2_the_square():
    w = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    assert score_weights(w, Magnitude(), DRAW).tolist() == [3, 0, 2]
    assert score_weights(w, L2(), DRAW).tolist() == [9, 0, 4]
    assert not score_weights(w, L2(), DRAW).requires_grad


def test_a_score_that_nobody_knows_is_an_error():
    with pytest.raises(InputError, match="no word `synflow` that is a score"):
        added("synflow", [1.0], [1.0])


# -- gradients ------------------------------------------------------------------------------------


def test_gradient_scores_are_their_formulas():
    w, grad = [2.0, -3.0, 0.0], [-0.5, -4.0, 7.0]
    assert added("taylor", w, grad) == [1, 12, 0]
    assert added("movement", w, grad) == [1, -12, 0]
    assert added("gradient", w, grad) == [0.5, 4, 7]


def test_the_scale_of_the_loss_is_taken_out_and_the_gain_put_in():
    assert added("taylor", [2.0], [3.0 * 1024], gain=0.25, unscale=1 / 1024) == [1.5]


def test_what_overflowed_adds_nothing():
    assert added("taylor", [2.0] * 4, [math.inf, -math.inf, math.nan, 1.0]) == [0, 0, 0, 2]


def test_a_score_takes_the_gradient_of_one_view_before_mask_and_shares():
    """The pruned weight's dw is zero here, and its score is that of a straight-through mask."""
    w, mask = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([True, False])
    total = torch.zeros(2)
    scoring = Scoring(total, torch.ones(()), "movement", 0, 1.0)
    sparse, dense = split_weight(w, mask, ("masked", "full"), (1.0, 0.0), (0.0, 0.0), scoring)
    (5 * sparse.sum() + 100 * dense.sum()).backward()
    assert w.grad.tolist() == [5, 0]
    assert total.tolist() == [-10, -15]


def test_a_view_that_no_loss_uses_leaves_its_score():
    w, total = torch.ones(2, requires_grad=True), torch.zeros(2)
    scoring = Scoring(total, torch.ones(()), "taylor", 0, 1.0)
    _, dense = split_weight(
        w, torch.ones(2, dtype=torch.bool), ("masked", "full"), (1.0, 0.0), (0.0, 1.0), scoring
    )
    dense.sum().backward()
    assert total.tolist() == [0, 0]


def test_two_forwards_before_two_backwards_both_count():
    w, total = torch.tensor([2.0], requires_grad=True), torch.zeros(1)
    mask, scoring = torch.tensor([True]), Scoring(total, torch.ones(()), "taylor", 0, 1.0)
    first, second = (split_weight(w, mask, ("masked",), (1.0,), (1.0,), scoring) for _ in "ab")
    first[0].sum().backward()
    (3 * second[0]).sum().backward()
    assert total.tolist() == [8]


# -- LAMP -----------------------------------------------------------------------------------------


def plain_lamp(squares):
    """Sorted upwards, each square over the sum from it on; of equal ones the earlier last."""
    order = sorted(range(len(squares)), key=lambda i: (squares[i], -i))
    scores = [0.0] * len(squares)
    for place, i in enumerate(order):
        rest = math.fsum(squares[j] for j in order[place:])
        scores[i] = squares[i] / rest if squares[i] else 0.0
    return scores


def test_lamp_of_a_layer_by_hand():
    assert lamp_scores(torch.tensor([1.0, 4.0, 3.0, 0.0])).tolist() == [1 / 8, 1, 3 / 7, 0]
    assert lamp_scores(torch.tensor([[2.0], [2.0]])).tolist() == [[1], [0.5]]
    assert lamp_scores(torch.zeros(2)).tolist() == [0, 0]


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_lamp_is_the_plain_formula(squares):
    scores = lamp_scores(torch.tensor(squares))
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), plain_lamp(squares), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e15])
def test_lamp_adds_whole_numbers_whose_sum_no_order_changes(monkeypatch, size):
    squares = (size * torch.randn(3000, generator=torch.Generator().manual_seed(0))).square()
    highest_first = squares.double().sort(descending=True).values.tolist()
    sums = list(itertools.accumulate(map(Fraction, highest_first)))
    cumsum = torch.Tensor.cumsum

    def of_whole_numbers(values, dim):
        assert not values.is_floating_point()
        return cumsum(values, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", of_whole_numbers)
    found = lamp_scores(squares).sort(descending=True).values
    shares = [float(Fraction(x) / total) for x, total in zip(highest_first, sums)]
    torch.testing.assert_close(found, torch.tensor(shares, dtype=torch.float64), rtol=5e-16, atol=0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_lamp_keeps_the_order_within_a_layer(squares, keep):
    squares = torch.tensor(squares, dtype=torch.float32)
    keep = min(keep, len(squares))
    masks = (keep_top([scores], keep, [0])[0] for scores in (lamp_scores(squares), squares))
    assert torch.equal(*masks)


# -- scores below zero ---------------------------------------------------------------------------


def test_without_sign_keeps_the_order_over_every_kind_of_number():
    numbers = [-math.inf, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38, math.inf, math.nan]
    keys = without_sign(torch.tensor(numbers))
    assert (keys >= 0).all() and (keys.diff() > 0).all()
    signed = without_sign(torch.tensor([-0.0, 0.0, -math.nan, math.nan], dtype=torch.float64))
    assert signed[0] == signed[1] and signed[2] == signed[3]


@given(st.lists(FLOATS, min_size=1, max_size=30), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_the_largest_scores_are_kept_where_some_are_negative(scores, keep):
    keep = min(keep, len(scores))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]
    (mask,) = keep_top([without_sign(torch.tensor(scores))], keep, [0])
    assert mask.nonzero().flatten().tolist() == sorted(order)


# -- random --------------------------------------------------------------------------------------


def plain_splitmix(key, place):
    """SplitMix64's place-th number from the state `key`, as its authors wrote it."""
    full = 2**64
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) % full
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % full
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % full
    return (z ^ (z >> 31)) >> 11


@pytest.mark.parametrize("key", [0, 1234567, 2**64 - 1, 0xDEADBEEF00000000])
def test_random_scores_are_the_published_generator(key):
    drawn = uniform((2, 3), key, torch.device("cpu")).flatten().tolist()
    assert drawn == [plain_splitmix(key, i) * 2.0**-53 for i in range(6)]


def test_random_scores_are_even_and_differ_with_the_key():
    one, other = (uniform((100_000,), key, torch.device("cpu")) for key in (1, 2))
    bins = torch.histc(one.float(), bins=10, min=0, max=1)
    assert (bins - 10_000).abs().max() < 500  # five standard deviations
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02
