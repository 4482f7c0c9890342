"""Graphs that write into their values, made smaller: `y += x`, `y.relu_()`, inplace=True."""

import pytest
import torch
import torch.nn.functional as F
from support.zeroed import IMAGE, dead, enliven
from torch import nn

from dcil_dsl.extras.compact.compaction import compact


class Branch(nn.Module):
    """A stem, a branch that may be dead, a head; `meet` says how the two meet."""

    def __init__(self, meet):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.relu, self.meet = nn.ReLU(inplace=True), meet

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.meet(self, x, self.norm(self.a(x))))


def added(net, x, y):
    y += x
    return y


def halved_and_added(net, x, y):
    y = y * 0.5
    y += x
    return y


def multiplied_by_a_method(net, x, y):
    return y.add_(0.25).mul_(x)


def rectified_by_a_module(net, x, y):
    return net.relu(y.sub_(0.5)) + x


def rectified_by_a_function(net, x, y):
    return torch.sigmoid_(F.relu6(y, inplace=True)) + x


def rectified_by_position(net, x, y):
    return F.relu(y, True) + x


@pytest.mark.parametrize(
    "meet",
    [
        added,
        halved_and_added,
        multiplied_by_a_method,
        rectified_by_a_module,
        rectified_by_a_function,
        rectified_by_position,
    ],
)
def test_a_dead_branch_leaves_though_something_is_written_into_what_it_gave(meet):
    torch.manual_seed(0)
    model = enliven(Branch(meet)).double()
    dead(model.a, *range(6))
    result = compact(model, IMAGE)
    assert result.shapes.replaced == ("norm",)
    bias = result.model.norm.bias.clone()
    for _ in range(2):  # the second call is given what the first one left
        torch.testing.assert_close(result.model(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)
    assert torch.equal(result.model.norm.bias, bias)


def test_a_constant_for_all_channels_may_have_something_added_to_it():
    """The values of `y` are one number for all places, those of `x` one a channel."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1)
            self.c = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.a(x)
            y += self.b(x)
            return self.c(y)

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 0, 1, 2, 3)
    dead(model.b, 0, 1, 2, 3)
    result = compact(model, IMAGE)
    torch.testing.assert_close(result.model(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)
