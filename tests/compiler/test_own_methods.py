"""A layer whose instance has methods of its own, in place of those of its class."""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from torch import nn

from dcil_dsl.model import TraceError, trace_model

WIDTH = 6


class Net(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        change(self)

    def forward(self, x):
        h = self.conv(self.stem(x)).relu()
        h = h + self.attention(h, h, h)[0]
        return self.head(h[:, 0])


def twice(self, x):
    return F.linear(x, self.weight * 2, self.bias)


def bound_forward(net):
    net.stem.forward = types.MethodType(twice, net.stem)
    net.head.forward = types.MethodType(twice, net.head)


def partial_forward(net):
    net.stem.forward = functools.partial(twice, net.stem)


def wrapped_forward(net):
    """As accelerate wraps forwards."""
    net.stem._old_forward = net.stem.forward
    net.stem.forward = types.MethodType(lambda self, x: self._old_forward(x) * 2, net.stem)


def circular(self, x, weight, bias):
    return F.conv1d(F.pad(x, (1, 1), mode="circular"), weight * 2, bias)


def own_convolution(net):
    """As is usual for images that can be tiled."""
    net.conv._conv_forward = types.MethodType(circular, net.conv)


def own_attention(net):
    def forward(self, query, key, value):
        return F.linear(query, self.in_proj_weight[:WIDTH]) + self.out_proj(value), None

    net.attention.forward = types.MethodType(forward, net.attention)


def rows(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(5, 1, WIDTH, generator=generator, dtype=torch.float64),), {}


CHANGES = [bound_forward, partial_forward, wrapped_forward, own_convolution, own_attention]


@pytest.mark.parametrize("prune", ["Linear, Conv1d", 'Linear, Conv1d except "stem", "conv"'])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_method_of_the_instance_has_the_gradients_of_two_forwards(change, prune):
    torch.manual_seed(0)
    worst = worst_difference(
        Net(change).double(),
        inputs=rows,
        losses=weighted_squares,
        prune=prune,
        keep="",
        steps=2,
    )
    assert worst < 1e-9


def closure_over_the_layer(net):
    layer = net.stem
    layer.forward = lambda x: F.linear(x, layer.weight * 2, layer.bias)


def closure_over_its_old_forward(net):
    old = net.stem.forward
    net.stem.forward = lambda x: old(x) * 2


@pytest.mark.parametrize("change", [closure_over_the_layer, closure_over_its_old_forward])
def test_a_forward_that_a_copy_would_leave_behind_is_refused_by_name(change):
    with pytest.raises(TraceError, match="`stem` .* its `forward` holds `stem`"):
        trace_model(Net(change), torch.randn(5, 1, WIDTH))
