"""Distillation with re-balanced classes is that of FOSTER's compression, arXiv:2204.04662."""

import pytest
import torch
import torch.nn.functional as F
from plainly import gradients, largest, network, sgd
from test_methods import KEEP, STEPS, assert_same, batches, recipe_of, start, state

import dcil_dsl as dcil
from dcil_dsl.training.optim import make_optimizer
from dcil_dsl.words.losses import KL, Balanced

COUNTS, BETA, TEMPERATURE, BEGIN = (200, 50, 5, 1), 0.97, 2, 3
RULE = "prune Linear to global(75%) { refresh = 1 step }"
MIX = f"""path sparse = masked  path dense = full
          update kept, pruned by dense until {BEGIN} steps
          update kept by sparse from {BEGIN} steps  update pruned by dense from {BEGIN} steps
          loss cross_entropy(dense)
          loss 0.25 * kl(student=sparse, teacher=dense, temperature={TEMPERATURE},
                         classes=balanced(beta={BETA})) from {BEGIN} steps
          deploy sparse"""


def plan_of(counts=COUNTS):
    recipe = dcil.loads(recipe_of(RULE, MIX))
    return dcil.resolve(recipe, start(), steps_per_epoch=STEPS, class_counts=counts)


def balanced_distillation(student, teacher):
    """The authors' BKD: cross entropy with the teacher's shares, weighed by class and made 1."""
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    weights = (1 - BETA) / (1 - BETA**counts)
    weights = weights / weights.sum() * len(COUNTS)
    target = F.softmax(teacher / TEMPERATURE, 1) * weights
    target = target / target.sum(1, keepdim=True)
    return -(target * F.log_softmax(student / TEMPERATURE, 1)).sum() / len(student)


def test_the_masked_view_learns_from_the_teachers_answers_rare_classes_weighing_more():
    plan = plan_of()
    dual = dcil.compile(plan, start())
    optimizer = make_optimizer(plan.train.optimizer, dual.trainable())
    for step, (x, y) in enumerate(batches()):
        dual.begin_step(step)
        optimizer.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        optimizer.step()

    weights, velocities = state()
    for step, (x, y) in enumerate(batches()):
        masks, grads = largest(weights, KEEP), gradients(x, y, weights)
        if step >= BEGIN:
            seen = [(w * m).requires_grad_() for w, m in zip(weights, masks)]
            loss = balanced_distillation(network(x, seen), network(x, weights))
            kept = torch.autograd.grad(loss, seen)
            grads = [torch.where(m, a, b) for m, a, b in zip(masks, kept, grads)]
        sgd(weights, velocities, grads)
    assert_same(dual, weights)


def test_a_plan_keeps_the_weights_of_its_classes():
    plan = plan_of()
    weights = plan.losses[1].term.classes.weights
    assert sum(weights) == pytest.approx(4)
    assert weights[3] / weights[2] == pytest.approx((1 - BETA**5) / (1 - BETA))
    assert dcil.Plan.from_json(plan.to_json()) == plan


def distilled(student, teacher, weights=None):
    classes = weights and Balanced(beta=BETA, weights=weights)
    term = KL(student="a", teacher="b", temperature=2.0, classes=classes)
    return term.loss({"a": student, "b": teacher}, None)


def test_classes_that_occur_alike_are_distilled_as_without_weights():
    student, teacher = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).double()
    plain = distilled(student, teacher)
    assert torch.allclose(distilled(student, teacher, (3.0,) * 4), plain, atol=1e-15)
    maps = student.reshape(2, 4, 2, 2), teacher.reshape(2, 4, 2, 2)  # classes second
    weighed = distilled(*maps, (1.0, 2.0, 3.0, 4.0))
    rows = [x.movedim(1, -1).reshape(-1, 4) for x in maps]
    assert torch.allclose(weighed, distilled(*rows, (1.0, 2.0, 3.0, 4.0)), atol=1e-15)


@pytest.mark.parametrize(
    "counts, says", [(None, "made without the data"), ((3, 4, 5), "4 classes, the data 3")]
)
def test_a_loss_that_does_not_know_its_classes_says_so(counts, says):
    plan = plan_of(counts)
    dual = dcil.compile(plan, start())
    dual.begin_step(BEGIN)
    x, y = next(batches())
    with pytest.raises(dcil.InputError, match=says):
        dcil.loss(plan, dual(x), y, BEGIN)


def test_a_class_without_an_example_has_no_weight():
    with pytest.raises(dcil.InputError, match="at least 1 for each class"):
        plan_of((3, 0, 1, 2))
