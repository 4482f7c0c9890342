"""Slices that meet have one number; what cannot be followed is fixed, with the reason."""

import torch
import torch.nn.functional as F
from torch import nn

from dcil_dsl.extras.compact.constants import find_constants
from dcil_dsl.model.channels.rules import find_dependencies
from dcil_dsl.model.trace import trace_model

IMAGE = (torch.zeros(1, 3, 4, 4),)


def find(model, inputs=IMAGE):
    traced = trace_model(model.eval())
    return find_dependencies(traced.eval, traced.model, inputs)


def channels(found, key, dim=0):
    return found.axes[key, dim].channels.tolist()


def values(found):
    return [v.reshape(-1).tolist() for v in find_constants(found).values()]


def test_a_layer_that_reads_another_has_its_rows_as_columns():
    found = find(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    )
    rows = channels(found, "0.weight")
    assert len(set(rows)) == 2 and 0 not in rows
    for key, dim in (("0.bias", 0), ("1.weight", 0), ("1.running_var", 0), ("3.weight", 1)):
        assert channels(found, key, dim) == rows


def test_rows_that_are_added_are_one_channel_and_the_input_is_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            return self.c(self.a(x) + self.b(x)) + x

    found = find(Net())
    assert channels(found, "a.weight") == channels(found, "b.weight")
    assert channels(found, "a.weight") == channels(found, "c.weight", 1)
    assert channels(found, "a.weight", 1) == [0, 0, 0]
    reasons = {found.fixed[channel] for channel in channels(found, "c.weight")}
    assert reasons == {"`add` joins them with values of no layer"}


def test_flattened_a_channel_is_a_block_and_a_view_is_followed():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 1))
    found = find(net)
    one, other = channels(found, "0.weight")
    assert channels(found, "2.weight", 1) == [one] * 16 + [other] * 16


def test_the_order_of_a_concatenation_is_that_of_the_columns():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return self.c(torch.cat([self.b(x), self.a(x)], dim=1))

    found = find(Net())
    assert channels(found, "c.weight", 1) == channels(found, "b.weight") + channels(
        found, "a.weight"
    )


def test_a_depthwise_row_is_the_channel_it_reads():
    found = find(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4)))
    a, b, c, d = channels(found, "0.weight")
    assert channels(found, "1.weight") == [a, a, b, b, c, c, d, d]


def test_a_head_is_one_channel_in_queries_keys_and_values():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            q, k, v = (p(x).unflatten(-1, (2, 2)).transpose(1, 2) for p in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    found = find(Net(), (torch.zeros(1, 3, 4),))
    one, _, two, _ = heads = channels(found, "q.weight")
    assert heads == [one, one, two, two] and one != two and one not in found.fixed
    assert channels(found, "k.weight") == channels(found, "v.weight") == heads
    assert channels(found, "out.weight", 1) == heads


def test_what_is_returned_and_what_is_not_understood_is_fixed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.a(x), self.b(x).cumsum(1)

    found = find(Net())
    assert {found.fixed[c] for c in channels(found, "a.weight")} == {
        "they are what the model returns"
    }
    assert {found.fixed[c] for c in channels(found, "b.weight")} == {
        "`cumsum` is not one of the operations understood"
    }


def test_tied_weights_have_the_channels_of_their_first_name():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    found = find(net, (torch.zeros(1, 3),))
    assert {key for key, _ in found.axes} == {"0.weight"}
    # rows and columns are one, and the columns are the model's input
    assert set(channels(found, "0.weight")) <= set(found.fixed)


def test_a_dead_filter_gives_its_bias_through_norm_and_activation():
    """2 -> (2 - 1) / sqrt(4) * 3 + 0.5 = 2 -> relu; the other filter depends on the input."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, eps=0.0), nn.ReLU())
    with torch.no_grad():
        net[0].weight[0] = 0.0
        net[0].bias[0] = 2.0
        net[1].running_mean[0], net[1].running_var[0] = 1.0, 4.0
        net[1].weight[0], net[1].bias[0] = 3.0, 0.5
    *_, norm, relu, _ = values(find(net))
    assert norm[0] == relu[0] == 2.0 and relu[1] != relu[1]


def test_zero_padding_makes_a_constant_depend_on_the_place_unless_it_is_zero():
    for bias, constant in ((1.0, False), (0.0, True)):
        net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 3, padding=1))
        with torch.no_grad():
            net[0].weight.zero_()
            net[0].bias.fill_(bias)
        *_, last, _ = values(find(net))
        assert (last[0] == last[0]) is constant


def test_pooling_keeps_a_constant_but_for_averages_with_zeros_beyond_the_border():
    for pool, constant in (
        (nn.MaxPool2d(3, 1, 1), True),
        (nn.AvgPool2d(3, 1, 1), False),
        (nn.AvgPool2d(2), True),
    ):
        net = nn.Sequential(nn.Conv2d(3, 1, 1), pool)
        with torch.no_grad():
            net[0].weight.zero_()
        *_, last, _ = values(find(net))
        assert (last[0] == last[0]) is constant
