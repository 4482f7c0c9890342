"""The metrics of the tasks against plain computations, and targets that do not fit."""

import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from support.library import needed

from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.examples import ExampleLoader
from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks import TASKS
from dcil_dsl.tasks.measures import Meter
from dcil_dsl.words.losses import BinaryCrossEntropy, ModelLoss


def measured(task, *batches):
    """The metrics of outputs and targets, batch by batch."""
    task = TASKS[task]
    meter = Meter(torch.device("cpu"), task.settings(batches[0][0]))
    for output, targets in batches:
        count = len(targets)
        task.check(output, targets)
        meter.update(task.compared(output, targets, count), task.broken(output, count), True)
    return meter.compute(1), int(meter.num_broken)


def halves(*tensors):
    middle = len(tensors[0]) // 2
    return [tuple(t[:middle] for t in tensors), tuple(t[middle:] for t in tensors)]


def test_f1_of_labels_is_that_of_scikit_learn_over_all_batches():
    torch.manual_seed(0)
    logits, wanted = torch.randn(40, 5), torch.randint(0, 2, (40, 5)).float()
    found, broken = measured("multi-label", *halves(logits, wanted))
    predicted = logits > 0
    assert found["f1"] == pytest.approx(f1_score(wanted, predicted, average="macro"), abs=1e-6)
    right = predicted == wanted.bool()
    assert found["label_accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-6)
    assert found["exact_match"] == pytest.approx(float(right.all(1).double().mean()), abs=1e-6)
    assert broken == 0


def test_logits_between_0_and_1_are_logits_and_not_shares():
    found, _ = measured("multi-label", (torch.tensor([[0.3, 0.2]]), torch.tensor([[1.0, 1.0]])))
    assert found["exact_match"] == 1


def test_an_example_without_finite_logits_has_every_label_wrong():
    logits, wanted = (
        torch.tensor([[torch.nan, -1.0], [1.0, -1.0]]),
        torch.tensor([[0.0, 0], [1, 0]]),
    )
    found, broken = measured("multi-label", (logits, wanted))
    assert (found["label_accuracy"], broken) == (0.5, 1)


def test_the_training_score_of_labels_is_their_share_that_is_right():
    logits, wanted = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0], [1, 0]])
    assert float(TASKS["multi-label"].score(logits, wanted, 2)) == 1.5


def test_binary_cross_entropy_is_the_mean_over_batch_and_labels():
    torch.manual_seed(0)
    logits, wanted = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 2, (6, 3))
    share = torch.sigmoid(logits)
    by_hand = -(wanted * share.log() + (1 - wanted) * (1 - share).log()).mean()
    assert float(BinaryCrossEntropy(path="a").term({"a": logits}, wanted)) == pytest.approx(
        float(by_hand), abs=1e-12
    )


def test_mean_iou_is_that_of_scikit_learn_and_leaves_marked_pixels_out():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 4, 5, 7), torch.randint(0, 4, (6, 5, 7))
    classes[:, 0] = -100
    found, _ = measured("segmentation", *halves(logits, classes))
    counts = classes >= 0
    own, wanted = logits.argmax(1)[counts], classes[counts]
    assert found["miou"] == pytest.approx(jaccard_score(wanted, own, average="macro"), abs=1e-6)
    share = float((own == wanted).double().mean())
    assert found["pixel_accuracy"] == pytest.approx(share, abs=1e-6)
    score = sum(float(TASKS["segmentation"].score(*half, 3)) for half in halves(logits, classes))
    assert score / 6 == pytest.approx(share, abs=0.02)


def test_the_logits_of_torchvisions_segmentation_models_are_read():
    logits = torch.randn(2, 3, 4, 4)
    found, _ = measured("segmentation", ({"out": logits}, logits.argmax(1)))
    assert found["pixel_accuracy"] == 1


def test_pixels_without_finite_logits_are_wrong_and_counted():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = 1
    logits[0, 0, 0, 0] = torch.nan
    found, broken = measured("segmentation", (logits, torch.zeros(1, 1, 2, dtype=torch.long)))
    assert (found["pixel_accuracy"], broken) == (0.5, 1)


def test_the_relative_error_is_over_all_points_together():
    torch.manual_seed(0)
    own, known = torch.randn(2, 30)
    found, _ = measured("physics", *halves(own, known))
    assert found["relative_l2"] == pytest.approx(float((own - known).norm() / known.norm()), 1e-6)


def test_perfect_boxes_have_an_average_precision_of_1_and_shifted_ones_less():
    needed("pycocotools")
    boxes = torch.tensor([[0.0, 0, 16, 16], [20, 20, 40, 40]])
    target = [{"boxes": boxes, "labels": torch.tensor([1, 2])}]
    found = [{**target[0], "scores": torch.tensor([0.9, 0.8])}]
    assert measured("detection", (found, target))[0] == {"map": 1.0, "map50": 1.0}
    shifted = [{**found[0], "boxes": boxes + 2}]
    values, _ = measured("detection", (shifted, target))
    assert values["map50"] == 1.0 and 0 < values["map"] < 1
    odd = [{**found[0], "boxes": boxes * torch.tensor([1, torch.nan, 1, 1])}]
    values, broken = measured("detection", (odd, target))
    assert values["map"] == 0 and broken == 1


def test_a_held_out_part_without_a_box_has_no_average_precision():
    needed("pycocotools")
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(InputError, match="no held-out example has a box"):
        measured("detection", ([none | {"scores": torch.zeros(0)}], [none]))


@pytest.mark.parametrize(
    "task, output, targets, fact",
    [
        ("multi-label", torch.zeros(2, 3), torch.full((2, 3), 0.5), "other than 0 and 1"),
        ("multi-label", torch.zeros(2, 3), torch.zeros(2, 4), "the targets are 2 x 4"),
        ("multi-label", torch.zeros(2, 3), torch.zeros(2), "a row of labels"),
        ("segmentation", torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255), "class number 255"),
        ("segmentation", torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), "class numbers"),
        ("segmentation", torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4).long(), "the target is"),
        ("segmentation", torch.zeros(1, 2), torch.zeros(1, 4, 4).long(), "not (batch, classes"),
        ("physics", torch.zeros(2, 3), torch.zeros(2), "the targets are 2"),
        ("detection", torch.zeros(2), [], "does not return `boxes`"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused(task, output, targets, fact):
    if task == "detection":
        needed("pycocotools")
    with pytest.raises(InputError) as error:
        TASKS[task].check(output, targets)
    assert fact in str(error.value)


BOX = torch.tensor([[5.0, 5, 30, 30]])


@pytest.mark.parametrize(
    "target, fact",
    [
        ([{"bbox": [5, 5, 10, 10]}], "its target is a list of 1"),
        ({"boxes": BOX, "labels": torch.tensor([0])}, "the label 0, and 0 is the background"),
        ({"boxes": BOX, "labels": torch.tensor([1, 2])}, "not (N, 4) and (N,)"),
        ({"boxes": BOX.long(), "labels": torch.tensor([1])}, "its boxes are of int64"),
        ({"boxes": BOX, "labels": torch.tensor([1.0])}, "its labels of float32"),
        ({"boxes": BOX.flip(1), "labels": torch.tensor([1])}, "boxes are left, top, right, bottom"),
        ({"boxes": BOX * torch.nan, "labels": torch.tensor([1])}, "a box is [nan"),
        ({"boxes": BOX / 64, "labels": torch.tensor([1])}, "boxes are in pixels"),
    ],
)
def test_boxes_that_a_detector_would_learn_from_in_silence_are_refused_by_their_number(
    target, fact
):
    image = torch.zeros(3, 32, 32)
    good = {"boxes": BOX, "labels": torch.tensor([1])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    items = [(image, good), (image, none), (image, target)]
    loader = ExampleLoader(Dataset("mine", items, items, task="detection"), "val", batch_size=3)
    with pytest.raises(InputError) as error:
        list(loader.epoch(0))
    assert "example 2 of mine: " in str(error.value) and fact in str(error.value)


def test_one_of_several_losses_of_a_model_has_a_term_of_its_own():
    losses = {"residual": torch.tensor(2.0), "boundary": torch.tensor(3.0)}
    term = ModelLoss(path="a", output="boundary")
    assert float(term.term({"a": losses}, None)) == 3 and term.label == "model(a, boundary)"
    assert float(ModelLoss(path="a").term({"a": losses}, None)) == 5
    with pytest.raises(InputError) as error:
        ModelLoss(path="a", output="boundry").term({"a": losses}, None)
    assert "no loss `boundry`" in str(error.value) and "`boundary`" in str(error.value)
