"""Mixed examples and what a loss makes of their labels."""

from random import Random

import pytest
import torch
from test_augment import pictures
from torch.nn import functional as F
from torchvision.transforms import v2

from dcil_dsl.data.mixing import CutMix, MixUp, mix_batch, neighbours

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])


def mixed(mixer, seed):
    return mix_batch(pictures(6).float(), LABELS, (mixer,), 3, seed)


class Fixed(Random):
    """Numbers that torchvision can be given too."""

    def __init__(self, share, *places):
        super().__init__(0)
        self.share, self.places = share, list(places)

    def betavariate(self, alpha, beta):
        return self.share

    def randrange(self, stop):
        return self.places.pop(0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_torchvisions(share):
    images = pictures(6).float()
    ours, own = MixUp(0.2).mix(images, images.roll(1, 0), Fixed(share))
    expected = v2.MixUp(num_classes=3).transform(images, {"lam": share, "labels": LABELS,
                                                          "batch_size": 6})  # fmt: skip
    torch.testing.assert_close(ours, expected)
    assert own == share


@pytest.mark.parametrize("share, x, y", [(0.3, 14, 10), (0.9, 0, 19), (0.0, 27, 0), (1.0, 5, 5)])
def test_cutmix_is_torchvisions_boxes_cut_at_the_edges_included(share, x, y, monkeypatch):
    images = pictures(6).float()
    their = v2.CutMix(num_classes=3)
    places = iter([torch.tensor([x]), torch.tensor([y])])
    monkeypatch.setattr(torch, "randint", lambda *a, **k: next(places))
    monkeypatch.setattr(their._dist, "sample", lambda shape: torch.tensor([share]))
    params = their.make_params([images])
    expected = their.transform(images, params | {"labels": LABELS, "batch_size": 6})
    ours, own = CutMix(1.0).mix(images, images.roll(1, 0), Fixed(share, x, y))
    assert torch.equal(ours, expected)
    assert own == pytest.approx(params["lam_adjusted"])


@pytest.mark.parametrize("mixer", [MixUp(0.5), CutMix(1.0)])
def test_labels_are_mixed_as_the_images_are(mixer):
    _, labels = mixed(mixer, 5)
    one_hot = F.one_hot(LABELS, 3).float()
    share = labels[0, 0]  # the first example is mixed with the last
    assert 0 < share < 1 and labels.dtype == torch.float32
    torch.testing.assert_close(labels, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_a_batch_is_mixed_by_one_of_the_words_each_about_as_often():
    images = pictures(6).float()
    whole = 0
    for seed in range(200):
        result, labels = mix_batch(images, LABELS, (MixUp(1.0), CutMix(1.0)), 3, seed)
        share = labels[0, 0]
        blend = images * share + images.roll(1, 0) * (1 - share)
        whole += int((result - blend).abs().max() < 1e-3)
    assert 70 < whole < 130


def test_a_stretch_of_a_batch_knows_whom_its_first_example_is_mixed_with():
    assert neighbours(0, 3, 7) == [6, 0, 1, 2]
    assert neighbours(3, 7, 7) == [2, 3, 4, 5, 6]
    assert neighbours(2, 2, 3) == [1]
