"""One image's way into a batch: sizes, order, and what is refused."""

import pytest
import torch
from PIL import Image

from dcil_dsl.data.augment import train_transform, val_transform
from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Augment

PAD_CROP = Augment(word="pad_crop", settings={"pixels": 4})
FLIP = Augment(word="flip", settings={"p": 1.0})
RESIZED_CROP = Augment(word="random_resized_crop", settings={"size": 24})


def test_nothing_to_do_is_no_transform():
    assert train_transform((), None, (8, 8)) is None
    assert val_transform((PAD_CROP,), 8, (8, 8)) is None


def test_a_flip_of_probability_one_mirrors():
    image = torch.arange(8 * 8, dtype=torch.uint8).reshape(1, 8, 8)
    assert torch.equal(train_transform((FLIP,), None, (8, 8))(image), image.flip(-1))


def test_pad_crop_moves_the_image_by_at_most_its_pixels_and_keeps_its_size():
    image = torch.full((1, 32, 32), 255, dtype=torch.uint8)
    out = train_transform((PAD_CROP,), None, (32, 32))(image)
    assert out.shape == (1, 32, 32)
    assert out[0, 4:-4, 4:-4].min() == 255


def test_pad_crop_crops_to_the_size_after_resizing():
    out = train_transform((PAD_CROP, FLIP), 32, (8, 8))(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert out.shape == (3, 32, 32) and out.dtype == torch.uint8


def test_random_resized_crop_sets_the_size_in_training():
    picture = Image.new("RGB", (60, 40))
    assert train_transform((RESIZED_CROP, FLIP), None, None)(picture).shape == (3, 24, 24)


def test_a_random_resized_crop_that_comes_first_takes_the_image_as_it_lies():
    """Were the image resized to 4 x 4 before, at most 16 values would be mixed."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 64, 64), dtype=torch.uint8)
    before = train_transform((RESIZED_CROP,), 4, (64, 64))
    after = train_transform((FLIP, RESIZED_CROP), 4, (64, 64))
    assert before(image).float().std() > 3 * after(image).float().std()


def test_validation_takes_the_short_side_then_the_middle():
    picture = Image.new("RGB", (700, 256))
    picture.paste((255, 0, 0), (238, 16, 462, 240))  # the middle 224 x 224
    out = val_transform((), 224, None)(picture)
    assert out.shape == (3, 224, 224)
    assert out[0].min() == 255 and out[1].max() == 0


def test_validation_without_a_size_takes_the_one_trained_on():
    assert val_transform((RESIZED_CROP,), None, None)(Image.new("L", (50, 40))).shape == (1, 24, 24)


@pytest.mark.parametrize("augment", [(), (FLIP,), (PAD_CROP,)])
def test_images_of_many_sizes_need_one_size(augment):
    with pytest.raises(InputError, match="image_size = 224"):
        train_transform(augment, None, None)
    with pytest.raises(InputError, match="image_size = 224"):
        val_transform(augment, None, None)


def test_an_augmentation_that_is_not_built_is_told():
    with pytest.raises(InputError, match="`mixup` is not built yet"):
        train_transform((Augment(word="mixup"),), 32, (32, 32))
