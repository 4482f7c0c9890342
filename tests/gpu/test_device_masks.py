"""Masks chosen on the device are those chosen on a CPU, to the last tie."""

import pytest
import torch

from dcil_dsl.masking.score import without_sign
from dcil_dsl.masking.select import keep_top
from dcil_dsl.masking.units import keep_pattern
from dcil_dsl.plan.plan import Cut
from dcil_dsl.words.scores import uniform
from dcil_dsl.words.targets import Lamp
from dcil_dsl.words.units import Percent

pytestmark = pytest.mark.gpu
SIZES = (64 * 3 * 7 * 7, 64 * 64 * 3 * 3, 5, 256 * 128)


def scores_of(kind, dtype):
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(size, generator=generator).abs() for size in SIZES]
    if kind == "ties":
        scores = [(4 * score).round() / 4 for score in scores]
    elif kind == "equal":
        scores = [torch.ones_like(score) for score in scores]
    elif kind == "special":
        for score in scores:
            score[0], score[1], score[2] = torch.inf, torch.nan, -0.0
    return [score.to(dtype) for score in scores]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "ties", "equal", "special"])
@pytest.mark.parametrize("floors", [(0, 0, 0, 0), (1, 1, 1, 1), (40, 300, 5, 17)])
def test_the_masks_are_the_cpus_and_the_count_is_exact(device, kind, dtype, floors):
    scores = scores_of(kind, dtype)
    for count in (sum(floors) + 1, sum(SIZES) // 10, sum(SIZES)):
        expected = keep_top(scores, count, list(floors))
        masks = keep_top([score.to(device) for score in scores], count, list(floors))
        assert sum(int(mask.sum()) for mask in masks) == count
        for mask, other, floor in zip(masks, expected, floors, strict=True):
            assert mask.device.type == device.type
            assert torch.equal(mask.cpu(), other)
            assert int(mask.sum()) >= floor


def test_a_layer_alone_has_the_cpus_mask_too(device):
    for kind in ("random", "ties", "equal"):
        score = scores_of(kind, torch.float32)[1]
        (expected,), (mask,) = keep_top([score], 999, [3]), keep_top([score.to(device)], 999, [3])
        assert torch.equal(mask.cpu(), expected) and int(mask.sum()) == 999


@pytest.mark.parametrize("kind", ["random", "ties", "equal", "special"])
def test_budgets_of_costs_ceilings_and_bounds_are_filled_as_on_a_cpu(device, kind):
    scores = scores_of(kind, torch.float32)
    there = [score.to(device) for score in scores]
    for more in (
        {"num_keep": 1_000_003, "costs": [49, 7, 1000, 64]},
        {"num_keep": 9_000, "ceilings": [500, 5_000, 2, 20_000]},
        {"num_keep": 9_000, "bounds": [([0, 1], 4_000, 6_000), ([2, 3], 0, 4_000)]},
    ):
        expected = keep_top(scores, floors=[1, 1, 1, 1], **more)
        masks = keep_top(there, floors=[1, 1, 1, 1], **more)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(masks, expected, strict=True))


def test_two_of_every_four_are_the_cpus(device):
    score = scores_of("ties", torch.float32)[1].view(64, 64, 3, 3)
    cut = Cut(shape=(1024, 4, 9), units=(0, 2))
    assert torch.equal(keep_pattern(score.to(device), cut, 2).cpu(), keep_pattern(score, cut, 2))


def test_random_scores_are_the_cpus_bit_for_bit(device):
    ours, cpus = (uniform((301, 7), 2**63 + 5, d) for d in (device, torch.device("cpu")))
    assert torch.equal(ours.cpu(), cpus)


def test_scores_below_zero_have_the_cpus_places(device):
    scores = torch.randn(SIZES[1], generator=torch.Generator().manual_seed(2))
    assert torch.equal(without_sign(scores.to(device)).cpu(), without_sign(scores))


def test_lamp_scores_are_the_cpus_bit_for_bit_at_every_call(device):
    squares = torch.randn(SIZES[1], generator=torch.Generator().manual_seed(3)).square()
    lamp = Lamp(sparsity=Percent(0.5))
    expected = lamp.rescaled(squares)
    for _ in range(10):
        assert torch.equal(lamp.rescaled(squares.to(device)).cpu(), expected)
