"""What becomes of images in a batch: each word against torchvision's own, image by image."""

import math

import pytest
import torch
from PIL import Image
from support.pictures import chance, pictures
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dcil_dsl.data import Dataset, Loader, Tensors
from dcil_dsl.data.augment import train_pipeline, val_pipeline
from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.augment import (
    ColorJitter,
    CutMix,
    Erase,
    Flip,
    MixUp,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    TrivialAugment,
)
from dcil_dsl.words.tensors.boxes import box_chances, crop_boxes

PAD_CROP = PadCrop(pixels=4)
FLIP = Flip(p=0.5)
RESIZED_CROP = RandomResizedCrop(size=24)


def drawn(step, images, seed=0):
    return step.draw(chance(seed), len(images), tuple(images.shape[-2:]))


# -- crops, flips, boxes -------------------------------------------------------------------------


def test_pad_crop_is_a_crop_of_the_padded_image_bit_for_bit():
    images = pictures(32)
    (offsets,) = draws = drawn(PadCrop(pixels=4), images)
    expected = [
        F.crop(F.pad(image, [4]), top, left, 20, 28)
        for image, (top, left) in zip(images, offsets.tolist())
    ]
    assert torch.equal(PadCrop(pixels=4).apply(images, draws), torch.stack(expected))
    many = PadCrop(pixels=1).draw(chance(), 2000, (20, 28))[0]
    assert many.unique(dim=0).tolist() == [[top, left] for top in range(3) for left in range(3)]


def test_flip_mirrors_as_many_as_it_should():
    images = pictures(8)
    (flipped,) = draws = drawn(Flip(p=0.5), images)
    expected = [F.horizontal_flip(i) if flip else i for i, flip in zip(images, flipped)]
    assert torch.equal(Flip(p=0.5).apply(images, draws), torch.stack(expected))
    (flipped,) = Flip(p=0.25).draw(chance(), 10_000, (1, 1))
    assert flipped.double().mean() == pytest.approx(0.25, 0.1)


@pytest.mark.parametrize("size", [8, 16, 40])
def test_a_resized_crop_is_torchvisions_antialiased_one(size):
    images = pictures(16)
    (boxes,) = draws = drawn(RandomResizedCrop(size=size), images)
    ours = RandomResizedCrop(size=size).apply(images, draws)
    expected = torch.stack(
        [
            F.resized_crop(image.double(), *box, size=[size, size], antialias=True)
            for image, box in zip(images, boxes.tolist())
        ]
    )
    assert (ours - expected).abs().max() <= 0.501  # the exact value, rounded


def test_boxes_of_crops_have_the_areas_and_ratios_of_the_paper_and_lie_inside():
    boxes = crop_boxes(box_chances(chance(), 5000), 200, 300)
    top, left, height, width = boxes.double().unbind(1)
    share, ratio = height * width / 60_000, (width / height).log()
    assert share.min() >= 0.079 and ratio.abs().max() <= math.log(4 / 3) + 0.02
    transform, image = v2.RandomResizedCrop(8), torch.zeros(1, 200, 300)
    theirs = [transform.make_params([image]) for _ in range(1000)]
    their_share = sum(p["height"] * p["width"] for p in theirs) / 60_000 / 1000
    assert share.mean() == pytest.approx(their_share, abs=0.03)
    assert (top + height).max() <= 200 and (left + width).max() <= 300 and boxes.min() >= 0


def test_where_no_box_fits_the_middle_is_taken():
    (box,) = crop_boxes(box_chances(chance(), 1), 3, 400).tolist()
    transform = v2.RandomResizedCrop(8)
    expected = transform.make_params([torch.zeros(3, 3, 400)])
    assert box == [expected[name] for name in ("top", "left", "height", "width")]


def test_erased_boxes_are_zero_and_nothing_else_is_touched():
    images = pictures(64).float() + 1
    (boxes,) = draws = drawn(Erase(p=0.5), images)
    expected = [
        F.erase(image, *box, v=torch.zeros(3, 1, 1)) if box[2] else image
        for image, box in zip(images, boxes.tolist())
    ]
    assert torch.equal(Erase(p=0.5).apply(images, draws), torch.stack(expected))
    area = boxes[:, 2] * boxes[:, 3] / (20 * 28)
    assert 20 < (area > 0).sum() < 44 and area.max() <= 0.35


# -- the way from the recipe to the batch --------------------------------------------------------


def apply_all(pipeline, images):
    images = pipeline.resized(images)
    for number, step in enumerate(pipeline.pixels):
        images = step.apply(images, drawn(step, images, number))
    return images


def test_nothing_to_do_is_nothing_done():
    images = pictures(2)
    assert apply_all(train_pipeline((), None, (20, 28)), images) is images
    assert apply_all(val_pipeline((PAD_CROP,), None, (20, 28)), images) is images


def test_pad_crop_crops_to_the_size_after_resizing():
    out = apply_all(train_pipeline((PAD_CROP, FLIP), 32, (20, 28)), pictures(2))
    assert out.shape == (2, 3, 32, 32) and out.dtype == torch.uint8


def test_a_random_resized_crop_that_comes_first_takes_the_image_as_it_lies():
    """Were the image resized to 4 x 4 before, at most 16 values would be mixed."""
    images = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8, generator=chance())
    before = apply_all(train_pipeline((RESIZED_CROP,), 4, (64, 64)), images)
    after = apply_all(train_pipeline((FLIP, RESIZED_CROP), 4, (64, 64)), images)
    assert before.float().std() > 3 * after.float().std()


def test_a_photograph_is_cropped_where_it_is_read_as_torchvision_does():
    photograph = F.to_pil_image(pictures(1, height=60, width=80)[0])
    pipeline = train_pipeline((RESIZED_CROP, FLIP), None, None)
    assert pipeline.size == (24, 24) and pipeline.pixels == (Flip(p=0.5),)
    chances = pipeline.reading.chances(chance(), 5)[3]
    box = crop_boxes(chances[None], 60, 80)[0].tolist()
    expected = F.pil_to_tensor(F.resized_crop(photograph, *box, size=[24, 24], antialias=True))
    assert torch.equal(pipeline.reading.apply(photograph, chances), expected)


def test_validation_takes_the_short_side_then_the_middle():
    picture = Image.new("RGB", (700, 256))
    picture.paste((255, 0, 0), (238, 16, 462, 240))  # the middle 224 x 224
    out = val_pipeline((), 224, None).reading.apply(picture, None)
    assert out.shape == (3, 224, 224)
    assert out[0].min() == 255 and out[1].max() == 0


def test_validation_without_a_size_takes_the_one_trained_on():
    reading = val_pipeline((RESIZED_CROP,), None, None).reading
    assert reading.apply(Image.new("L", (50, 40)), None).shape == (1, 24, 24)


@pytest.mark.parametrize("augment", [(), (FLIP,), (PAD_CROP,)])
def test_images_of_many_sizes_need_one_size(augment):
    with pytest.raises(InputError, match="images may differ in size") as error:
        train_pipeline(augment, None, None)
    assert "image_size = 224" in error.value.help
    with pytest.raises(InputError, match="images may differ in size"):
        val_pipeline(augment, None, None)


def test_images_of_many_sizes_want_the_crop_first():
    with pytest.raises(InputError) as error:
        train_pipeline((FLIP, RESIZED_CROP), None, None)
    assert "put `random_resized_crop` first" in error.value.help


@pytest.mark.parametrize(
    "word",
    [
        RandAugment(n=2, m=9),
        TrivialAugment(),
        Erase(p=1.0),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        MixUp(alpha=1.0),
        CutMix(alpha=1.0),
    ],
    ids=lambda word: word.called,
)
def test_a_batch_of_every_word_repeats_is_of_ranks_put_together_and_differs_by_batch(word):
    part = Tensors(pictures(16), torch.arange(16) % 3)
    data = Dataset("few", part, part, tuple("abc"), (0.5,) * 3, (0.2,) * 3)
    options = dict(batch_size=8, augment=(FLIP, word))
    first, second = Loader(data, "train", **options).epoch(1)
    (again,) = Loader(data, "train", **options).epoch(1, start=1)
    assert torch.equal(second[0], again[0]) and torch.equal(second[1], again[1])
    plain = list(Loader(data, "train", batch_size=8, augment=(FLIP,)).epoch(1))
    assert not torch.equal(first[0], plain[0][0]) and first[0].isfinite().all()
    ranks = [Loader(data, "train", rank=r, world_size=3, **options).epoch(1, 1) for r in range(3)]
    images, labels = zip(*(next(rank) for rank in ranks))
    torch.testing.assert_close(torch.cat(images), second[0], rtol=0, atol=1e-5)
    assert torch.equal(torch.cat(labels), second[1])
