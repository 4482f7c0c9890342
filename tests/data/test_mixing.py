"""Mixed examples and what a loss makes of their labels."""

from random import Random

import pytest
import torch
from support.pictures import pictures
from torch.nn import functional as F
from torchvision.transforms import v2

from dcil_dsl.data.augment import mix_batch, neighbours
from dcil_dsl.plan.plan import WeightedLoss
from dcil_dsl.tasks.classification import num_correct
from dcil_dsl.training.losses import loss_term
from dcil_dsl.words.augment import CutMix, MixUp
from dcil_dsl.words.losses import CrossEntropy

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
    ours, own = MixUp(alpha=0.2).mix(images, images.roll(1, 0), Fixed(share))
    expected = v2.MixUp(num_classes=3).transform(
        images, {"lam": share, "labels": LABELS, "batch_size": 6}
    )
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
    ours, own = CutMix(alpha=1.0).mix(images, images.roll(1, 0), Fixed(share, x, y))
    assert torch.equal(ours, expected)
    assert own == pytest.approx(params["lam_adjusted"])


@pytest.mark.parametrize("mixer", [MixUp(alpha=0.5), CutMix(alpha=1.0)])
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
        result, labels = mix_batch(images, LABELS, (MixUp(alpha=1.0), CutMix(alpha=1.0)), 3, seed)
        share = labels[0, 0]
        blend = images * share + images.roll(1, 0) * (1 - share)
        whole += int((result - blend).abs().max() < 1e-3)
    assert 70 < whole < 130


def test_a_stretch_of_a_batch_knows_whom_its_first_example_is_mixed_with():
    assert neighbours(0, 3, 7) == [6, 0, 1, 2]
    assert neighbours(3, 7, 7) == [2, 3, 4, 5, 6]
    assert neighbours(2, 2, 3) == [1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_a_mixed_label_is_the_mixture_of_both_cross_entropies(smoothing):
    """It is linear in the label, smoothed or not; a model may have more classes than the data."""
    _, labels = mixed(MixUp(alpha=0.5), 5)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = WeightedLoss(
        name="l", coefficient=1, term=CrossEntropy(path="sparse", smoothing=smoothing)
    )
    own, other = (
        loss_term(loss, {"sparse": logits}, target) for target in (LABELS, LABELS.roll(1, 0))
    )
    share = labels[0, 0].double()
    found = loss_term(loss, {"sparse": logits}, labels)
    torch.testing.assert_close(found, share * own + (1 - share) * other)


def test_an_answer_is_right_where_it_is_the_class_with_the_larger_share():
    logits = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([[0.3, 0.7, 0.0], [0.4, 0.0, 0.6]])
    assert num_correct(logits, labels) == 1 and num_correct(logits, labels, k=3) == 2
