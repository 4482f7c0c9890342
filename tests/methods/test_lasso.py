"""Lasso and group lasso add the gradients of their sums, in float64, part by part."""

import pytest
import torch
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.words.losses import L1, GroupLasso

RECIPE = """language 1
prune Conv2d, ConvTranspose2d to 50% { penalty = [PENALTY] }
mix {
  path sparse = masked
  loss cross_entropy(sparse)
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers).double()


def absolute(weight, mask, axis):
    return (weight * mask).abs().sum()


def filters(weight, mask, axis):
    return sum((weight * mask).select(axis, i).norm() for i in range(weight.shape[axis]))


@pytest.mark.parametrize("part", ["kept", "pruned"])
@pytest.mark.parametrize("word, total", [("l1", absolute), ("group_lasso", filters)])
def test_the_gradient_is_that_of_the_sum_over_the_part(word, total, part):
    text = RECIPE.replace("PENALTY", f"{word}({part}, 0.01)")
    plan = dcil.resolve(dcil.loads(text), net(), steps_per_epoch=2)
    dual = dcil.compile(plan, net())
    dual.begin_step(0)
    dual.add_penalties(0)
    for name, axis in (("0.weight", 0), ("1.weight", 1)):
        weight = dual.get_parameter(name)
        own = weight.detach().clone().requires_grad_()
        mask = dual.masks[name] if part == "kept" else ~dual.masks[name]
        (expected,) = torch.autograd.grad(0.01 * total(own, mask, axis), own)
        torch.testing.assert_close(weight.grad, expected.nan_to_num(), rtol=1e-12, atol=1e-15)


def test_of_zeros_both_gradients_are_zero():
    zeros = torch.zeros(2, 3)
    assert not L1(part="kept", weight=1.0).gradient(zeros).any()
    assert not GroupLasso(part="kept", weight=1.0).gradient(zeros).any()
