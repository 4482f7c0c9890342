"""Batches on the device are those of a CPU, also where they are made ahead of their use."""

import numpy
import pytest
import torch
from PIL import Image
from support.augment_words import WORDS

from dcil_dsl.data import Loader, open_dataset
from dcil_dsl.words.augment import Flip, RandomResizedCrop

pytestmark = pytest.mark.gpu
FLIP = Flip(p=0.5)


@pytest.mark.parametrize("word", WORDS)
def test_an_augmented_batch_is_the_cpus_but_for_rounding(device, word):
    data = open_dataset("synthetic", num_train=256, num_val=8)
    options = dict(batch_size=64, augment=(WORDS[word],))
    there = Loader(data, "train", device=device, **options)
    here = Loader(data, "train", **options)
    level = 1 / 255 / min(data.std)
    for (images, labels), (others, expected) in zip(there.epoch(1), here.epoch(1)):
        assert images.device.type == device.type
        # Sums may round the other way, and of two pixels as near the other one may be taken.
        far = ((images.cpu() - others).abs() > 1.01 * level).float().mean()
        assert far < 1e-3
        torch.testing.assert_close(labels.cpu(), expected)


def test_batches_of_files_are_the_cpus_when_their_stream_runs_ahead(device, tmp_path):
    """Each batch is changed in place after its use: were its memory given away too early, or
    read before it is filled, sums would differ."""
    generator = numpy.random.default_rng(0)
    for part, count in (("train", 64), ("val", 2)):
        (tmp_path / part / "a").mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (90, 80, 3), numpy.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{number}.png")
    data = open_dataset("imagefolder", tmp_path)
    augment = (RandomResizedCrop(size=64), FLIP)
    options = dict(batch_size=8, augment=augment)
    there = Loader(data, "train", device=device, workers=2, **options)
    here = Loader(data, "train", **options)
    busy = torch.randn(2048, 2048, device=device)
    try:
        for epoch in range(2):
            for (images, _), (others, _) in zip(there.epoch(epoch), here.epoch(epoch)):
                for _ in range(10):
                    busy = (busy @ busy).clamp(-1, 1)
                copy = images.clone()
                images.fill_(float("nan"))
                torch.testing.assert_close(copy.cpu(), others, rtol=0, atol=1e-5)
    finally:
        there.close()


def test_batches_that_lie_on_the_device_are_the_cpus_when_the_callers_stream_is_busy(device):
    """Were their rows picked in the caller's stream, the one that makes them would not wait."""
    data = open_dataset("synthetic", num_train=256, num_val=8)
    options = dict(batch_size=32, augment=(FLIP,))
    there = Loader(data, "train", device=device, **options)
    expected = list(Loader(data, "train", **options).epoch(0))
    busy = torch.randn(2048, 2048, device=device)
    for _ in range(2):
        for (images, labels), (others, same) in zip(there.epoch(0), expected, strict=True):
            for _ in range(10):
                busy = (busy @ busy).clamp(-1, 1)
            torch.testing.assert_close(images.cpu(), others, rtol=0, atol=1e-5)
            assert torch.equal(labels.cpu(), same)
