"""A path on part of the batch, at a smaller size, every few steps: what it sees, what it costs."""

import pytest
import torch
import torch.nn.functional as F
from support.mutual import mutual
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.plan.cost import training_cost


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def compiled(thin, steps_per_epoch=8):
    recipe = mutual("Conv2d", "global(75%)", dense=thin)
    plan = dcil.resolve(recipe, small_net(), steps_per_epoch)
    return plan, dcil.compile(plan, small_net())


def batch():
    torch.manual_seed(1)
    return torch.randn(8, 3, 10, 10, dtype=torch.float64), torch.randint(0, 4, (8,))


def kl(student, teacher):
    p = F.softmax(teacher.detach() / 2, 1)
    return 4 * (p * (p.log() - F.log_softmax(student / 2, 1))).sum(1).mean()


@pytest.mark.parametrize(
    "thin, rows, shrink",
    [
        ("batch = 25%", 2, lambda x: x),
        ("batch = 30%", 3, lambda x: x),
        ("size = 50%", 8, lambda x: F.adaptive_avg_pool2d(x, 5)),
        ("batch = 50%  size = 50%", 4, lambda x: F.adaptive_avg_pool2d(x, 5)),
    ],
)
def test_gradients_are_those_of_two_forwards_on_what_each_path_sees(thin, rows, shrink):
    plan, dual = compiled(thin)
    x, y = batch()
    dual.begin_step(0)
    outputs = dual(x)
    dcil.loss(plan, outputs, y, 0).backward()

    sparse, dense = small_net(), small_net()
    with torch.no_grad():
        for name, mask in dual.masks.items():
            sparse.get_parameter(name).mul_(mask)
    y_sparse, y_dense = sparse(x), dense(shrink(x[:rows]))
    assert torch.allclose(outputs["sparse"], y_sparse, rtol=0, atol=1e-12)
    assert torch.allclose(outputs["dense"], y_dense, rtol=0, atol=1e-12)
    loss = F.cross_entropy(y_sparse, y) + F.cross_entropy(y_dense, y[:rows])
    loss = loss + kl(y_sparse[:rows], y_dense) + kl(y_dense, y_sparse[:rows])
    loss.backward()
    for name, mask in dual.masks.items():
        routed = torch.where(mask, sparse.get_parameter(name).grad, dense.get_parameter(name).grad)
        assert torch.allclose(dual.get_parameter(name).grad, routed, rtol=0, atol=1e-12), name


def test_in_evaluation_every_path_sees_all():
    _, dual = compiled("batch = 25%  size = 50%")
    x, _ = batch()
    outputs = dual.eval()(x)
    assert torch.equal(outputs["dense"], small_net().eval()(x))


@pytest.mark.parametrize("offset", [0, 3])
def test_a_path_of_every_fourth_step_rests_in_between(offset):
    plan, dual = compiled(f"every = 4 steps  offset = {offset} steps")
    x, y = batch()
    pruned = {}
    for step in range(6):
        dual.begin_step(step)
        dual.zero_grad()
        outputs = dual(x)
        assert set(outputs) == ({"sparse", "dense"} if step % 4 == offset else {"sparse"})
        dcil.loss(plan, outputs, y, step).backward()
        weight, mask = dual.get_parameter("3.weight"), dual.masks["3.weight"]
        pruned[step] = bool(weight.grad[~mask].any())
        assert weight.grad[mask].any()
    assert pruned == {step: step % 4 == offset for step in range(6)}


@pytest.mark.parametrize(
    "thin, cost",
    [
        ("", 2.0),
        ("batch = 25%", 1.25),
        ("size = 50%", 1.25),
        ("every = 4 steps", 1.25),
        ("every = 3 steps", 1 + 6 / 16),
        ("every = 3 steps  offset = 2 steps", 1 + 5 / 16),
        ("batch = 50%  every = 2 steps", 1.25),
    ],
)
def test_the_plan_counts_what_a_thinner_path_costs(thin, cost):
    plan, _ = compiled(thin)
    assert training_cost(plan) == pytest.approx(cost, abs=1e-12)


def test_an_input_that_is_written_to_is_thinned_as_it_came():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            x.mul_(2)
            return self.net(x)

    recipe = mutual("Conv2d", "global(75%)", dense="batch = 50%")
    dual = dcil.compile(dcil.resolve(recipe, Writes(), 8), Writes())
    x, _ = batch()
    twice = 2 * x
    dual.begin_step(0)
    assert torch.allclose(dual(x)["dense"], small_net()(twice[:4]), rtol=0, atol=1e-12)
