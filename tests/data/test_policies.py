"""Operations on values and places of pixels, each against torchvision's own on one image."""

import math

import pytest
import torch
from support.pictures import chance, pictures
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dcil_dsl.words.augment import ColorJitter, RandAugment, TrivialAugment
from dcil_dsl.words.tensors.colour import hue
from dcil_dsl.words.tensors.operations import (
    FACTORS,
    NUM_AUTOMATIC,
    OPERATIONS,
    SIGNED,
    apply_operations,
    magnitudes,
)

NAMES = list(v2.RandAugment._AUGMENTATION_SPACE)
SPACES = {
    False: v2.RandAugment._AUGMENTATION_SPACE,
    True: v2.TrivialAugmentWide._AUGMENTATION_SPACE,
}


def theirs(image, name, magnitude):
    apply = v2.RandAugment()._apply_image_or_video_transform
    return apply(image, name, magnitude, v2.InterpolationMode.NEAREST, {})


def assert_same_but_for_rounding(ours, expected, share=0.0):
    """share  of the pixels that may differ: sums that round the other way, ties of two places"""
    assert (ours != expected).float().mean() <= share


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@pytest.mark.parametrize("number, name", list(enumerate(NAMES)))
def test_an_operation_is_torchvisions_of_the_same_name_at_every_magnitude(number, name, wide):
    images = pictures(31)
    values, signed = SPACES[wide][name]
    values = values(31, 20, 28)
    expected = [0.0] * 31 if values is None else values.tolist()
    ours = magnitudes(20, 28, wide)[number]
    for sign in (1, -1) if signed else (1,):
        reference = torch.stack([theirs(i, name, sign * m) for i, m in zip(images, expected)])
        amounts = sign * ours + FACTORS[number].double()
        made = OPERATIONS[number].apply(images, amounts)
        assert_same_but_for_rounding(made, reference, 0.01 if name in ("Color", "ShearX") else 1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_is_turned_as_torchvision_turns_it(channels):
    images, shifts = pictures(9, channels), torch.linspace(-0.5, 0.5, 9)
    expected = torch.stack([F.adjust_hue(i, s) for i, s in zip(images, shifts.tolist())])
    assert_same_but_for_rounding(hue(images, shifts), expected, 1e-3)


def test_each_image_goes_through_its_own_operations_in_turn():
    images = pictures(4)
    which = torch.tensor([[0, 13], [5, 11], [13, 5], [6, 10]])
    amounts = torch.tensor([[0, 0], [30, 128], [0, -30], [1.5, 4]], dtype=torch.float64)
    expected = torch.stack(
        [
            F.equalize(images[0]),
            F.solarize(F.rotate(images[1], 30), 128),
            F.rotate(F.equalize(images[2]), -30),
            F.posterize(F.adjust_brightness(images[3], 1.5), 4),
        ]
    )
    before = images.clone()
    assert torch.equal(apply_operations(images, which, amounts), expected)
    assert torch.equal(images, before)


def test_rand_augment_draws_all_operations_alike_at_its_magnitude_and_both_signs():
    which, amounts = RandAugment(n=2, m=9).draw(chance(), 4000, (20, 28))
    assert which.shape == amounts.shape == (4000, 2)
    counts = which.flatten().bincount(minlength=NUM_AUTOMATIC)
    assert len(counts) == 14 and counts.min() > 450 and counts.max() < 700
    turns = amounts[which == NAMES.index("Rotate")]
    assert turns.unique().tolist() == pytest.approx([-9.0, 9.0])
    assert abs(turns.mean()) < 1.5
    brightness = amounts[which == NAMES.index("Brightness")].unique().tolist()
    assert brightness == pytest.approx([0.73, 1.27])


def test_trivial_augment_draws_one_operation_at_all_magnitudes():
    which, amounts = TrivialAugment().draw(chance(), 20_000, (20, 28))
    assert which.shape == (20_000, 1)
    turns = amounts[which == NAMES.index("Rotate")]
    assert turns.unique().tolist() == pytest.approx([4.5 * n for n in range(-30, 31)])
    assert not bool(SIGNED[NAMES.index("Posterize")])


def test_color_jitter_draws_its_ranges_and_every_order():
    jitter = ColorJitter(brightness=0.4, contrast=0.0, saturation=1.5, hue=0.25)
    which, amounts = jitter.draw(chance(), 5000, (20, 28))
    their = v2.ColorJitter(brightness=0.4, saturation=1.5, hue=0.25)
    for number, (low, high) in ((6, their.brightness), (7, their.saturation), (14, their.hue)):
        found = amounts[which == number]
        assert len(found) == 5000  # each once for every image
        assert low <= found.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < found.max() <= high
    assert len(which.unique(dim=0)) == math.factorial(4)  # 0 stands where contrast would


def test_grey_images_of_one_channel_go_through_every_operation():
    images = pictures(14, channels=1)
    which, amounts = torch.arange(14)[:, None], torch.full((14, 1), 1.0, dtype=torch.float64)
    made = apply_operations(images, which, amounts)
    assert made.shape == images.shape and made.dtype == torch.uint8
