"""A network without its dead parts computes what it did with them. Counts are made by hand."""

import copy

import pytest
import torch
from support.zeroed import (
    IMAGE,
    Residual,
    agree,
    dead,
    double,
    enliven,
    numel,
    residual,
    zero_rows,
)
from torch import fx, nn

from dcil_dsl.extras.compact.compaction import compact


def test_filters_leave_with_their_norm_and_the_columns_that_read_them():
    model = double(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    dead(model[0], 1, 3)
    result = compact(model, IMAGE)
    # 2 filters of 3 weights and a bias, scale and shift of 2, 5 filters of 2 weights and a bias
    assert numel(result.model) == 2 * 3 + 2 + 2 * 2 + 5 * 2 + 5
    assert type(result.model) is nn.Sequential and result.model[0].out_channels == 2
    agree(result, model)


def test_what_a_dead_filter_gave_is_in_the_next_bias():
    model = double(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        dead(model[0], 1)
        model[0].bias[1] = 0.5
        model[2].weight.copy_(torch.tensor([[2.0, 3.0]]).view(1, 2, 1, 1))
        model[2].bias.fill_(1.0)
    result = compact(model, IMAGE)
    assert result.tensors["2.bias"].tolist() == [1.0 + 3.0 * 0.5]


def test_without_a_bias_the_running_mean_of_the_norm_takes_it():
    model = double(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5))
    dead(model[0], 0, 2)
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    result = compact(model, IMAGE)
    moved = model[3].running_mean - model[2].weight[:, [0, 2]].sum((1, 2, 3))
    assert torch.allclose(result.tensors["3.running_mean"], moved)
    assert result.model[0].out_channels == 2
    agree(result, model)


def test_through_zero_padding_one_dead_filter_stays_and_carries_the_others_exactly():
    model = double(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    dead(model[0], 0, 1, 2, 3, 4)
    with torch.no_grad():
        model[0].bias[:5] = torch.tensor([0.5, 2.0, 1.0, 0.25, -1.0])  # the last gives relu(-1) = 0
    result = compact(model, IMAGE)
    assert result.shapes.tensors["0.weight"].kept[0] == (1, 5, 6, 7)
    agree(result, model)
    (stay,) = result.stays
    assert (
        stay.count == 1 and "carries the constants of the others into `2` (Conv2d)" in stay.reason
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_through_zero_padding_each_group_keeps_a_carrier_of_its_own(transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = double(
        nn.Conv2d(3, 12, 1),
        nn.BatchNorm2d(12),
        nn.Sigmoid(),
        kind(12, 6, 3, padding=1, groups=3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    )
    dead(model[0], 0, 1, 2, 4, 6, 7, 9, 10, 11)
    result = compact(model, IMAGE)
    assert result.model[0].out_channels == 6  # of four in each group three are dead, one carries
    assert result.model[3].weight.shape == (6, 2, 3, 3) and result.model[3].groups == 3
    agree(result, model)


def test_a_filter_that_nothing_reads_leaves_whatever_its_weights_are():
    model = double(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, padding=1))
    with torch.no_grad():
        model[2].weight[:, 2] = 0.0
    result = compact(model, IMAGE)
    assert result.model[0].out_channels == 3
    agree(result, model)


def test_a_batch_norm_of_scale_zero_makes_a_channel_dead():
    model = double(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    with torch.no_grad():
        model[1].weight[3] = 0.0
    result = compact(model, IMAGE)
    assert result.model[0].out_channels == 3
    agree(result, model)


def test_a_network_of_zeros_keeps_one_channel_in_each_layer():
    model = double(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    dead(model[0], *range(4))
    dead(model[2], *range(5))
    result = compact(model, IMAGE)
    assert [tuple(p.shape) for p in result.model.parameters()] == [
        (1, 3, 3, 3),
        (1,),
        (5, 1, 3, 3),
        (5,),
    ]
    agree(result, model)


def test_a_channel_is_a_block_of_features_behind_flatten():
    model = double(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    dead(model[0], 2)
    result = compact(model, IMAGE)
    assert result.model[3].in_features == 3 * 64
    assert result.shapes.tensors["3.weight"].kept[1] == (*range(128), *range(192, 256))
    agree(result, model)


def test_a_concatenation_shifts_the_columns_of_what_comes_second():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
            self.c = nn.Conv2d(7, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    torch.manual_seed(0)
    model = enliven(Net()).double()
    dead(model.a, 1)
    dead(model.b, 0, 2)
    result = compact(model, IMAGE)
    assert result.shapes.tensors["c.weight"].kept[1] == (0, 2, 3, 5)
    agree(result, model)


def test_a_depthwise_filter_leaves_with_its_channel():
    model = double(
        nn.Conv2d(3, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
    )
    dead(model[2], 0, 5)
    result = compact(model, IMAGE)
    assert result.model[0].out_channels == result.model[2].groups == 4
    agree(result, model)


def test_a_constant_that_meets_live_taps_at_a_border_stays():
    model = double(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1))
    dead(model[0], 2)
    with torch.no_grad():
        model[0].bias[2] = 1.0
    result = compact(model, IMAGE)
    assert result.model[0].out_channels == 6
    assert result.stays[0].reason == "`2` (Conv2d) reads it where it is not constant"
    with torch.no_grad():
        model[0].bias[2] = 0.0
    assert compact(model, IMAGE).model[0].out_channels == 5


def test_groups_lose_as_many_channels_as_the_one_that_loses_least_and_whole_groups_leave():
    model = double(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    dead(model[0], 0, 1, 6)
    result = compact(model, IMAGE)
    assert result.shapes.tensors["0.weight"].kept[0] == (1, 2, 3, 4, 5, 7)
    assert result.shapes.tensors["2.weight"].kept == {1: ((1, 2, 3), (0, 1, 3))}
    agree(result, model)
    with torch.no_grad():
        model[3].weight[:, 2:] = 0.0  # nothing reads the second group
    result = compact(model, IMAGE)
    assert (result.model[2].groups, result.model[2].in_channels) == (1, 2)
    agree(result, model)


def test_a_row_that_nothing_reads_and_that_stays_for_its_groups_keeps_what_it_reads():
    b = nn.Conv2d(4, 4, 3, groups=2, bias=False)
    model = double(nn.Conv2d(3, 4, 1), nn.ReLU(), b, nn.Conv2d(4, 2, 1))
    dead(model[0], 0, 2)
    with torch.no_grad():
        model[0].bias[0], model[0].bias[2] = -1.0, 1.0  # the first group could lose relu(-1)
        b.weight[3, 0] = 0.0  # of the second group one row alone reads its dead filter
        model[3].weight[:, 2] = 0.0  # and nothing reads that row
    result = compact(model, IMAGE)
    assert result.model[2].weight.shape == (4, 2, 3, 3)
    agree(result, model)


def test_a_group_norm_loses_whole_groups():
    model = double(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.SiLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[3].weight[:, [0, 2, 3]] = 0.0  # the second group whole, half of the first
    result = compact(model, IMAGE)
    assert (result.model[1].num_groups, result.model[1].num_channels) == (2, 4)
    agree(result, model)


def test_a_transposed_convolution_is_cut_along_its_other_dims():
    model = double(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 2, 1))
    dead(model[0], 3)
    with torch.no_grad():
        model[0].bias[3] = 0.0
        model[1].weight[:, 1] = 0.0
    result = compact(model, IMAGE)
    assert result.model[1].weight.shape == (3, 5, 2, 2)
    agree(result, model)


def test_what_an_excitation_multiplies_leaves_with_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.down, self.up = nn.Conv2d(3, 6, 3), nn.Linear(6, 2), nn.Linear(2, 6)
            self.b = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = self.a(x)
            scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
            return self.b(x * scale[:, :, None, None])

    torch.manual_seed(0)
    model = enliven(Net()).double()
    dead(model.a, 4)
    with torch.no_grad():
        model.a.bias[4] = 0.0
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == result.model.up.out_features == 5
    agree(result, model)


def test_shared_weights_are_cut_alike_at_each_use():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x)).relu()))

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 2)
    dead(model.b, 2)
    with torch.no_grad():
        model.a.bias[2] = model.b.bias[2] = 0.0
    x = (torch.randn(4, 3).double(),)
    result = compact(model, x)
    assert result.model.b.weight.shape == (5, 5)
    agree(result, model, x)


def test_a_channel_shuffle_keeps_its_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            x = self.a(x)
            n, c, h, w = x.shape
            return self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 1, 5, 2)  # 1 and 5 are one column of the 2 x 4 grid, 2 is alone in its own
    result = compact(model, IMAGE)
    assert result.shapes.tensors["a.weight"].kept[0] == (0, 2, 3, 4, 6, 7)
    assert isinstance(result.model, fx.GraphModule)
    agree(result, model)


def test_parts_of_a_tensor_shrink_each_by_what_it_loses():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.a(x)
            one, other = x[:, :4], x[:, 6:]
            left, _ = x.split([6, 2], dim=1)
            return self.b(one) + self.c(other) + self.b(left[:, 2:])

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 7)
    x = (torch.randn(4, 3).double(),)
    result = compact(model, x)
    assert result.model.a.out_features == 7
    agree(result, model, x)


def test_the_model_given_is_not_changed_and_another_batch_size_runs():
    model = residual()
    dead(model.b, *range(6))
    before = copy.deepcopy(model.state_dict())
    result = compact(model, IMAGE)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert result.model(IMAGE[0][:1]).shape == (1, 4, 8, 8)


def test_expanded_the_small_weights_load_strictly_and_compute_the_same():
    model = zero_rows(residual(), part=0.5)
    result = compact(model, IMAGE)
    assert numel(result.model) < numel(model)
    again = Residual().double().eval()
    again.load_state_dict(result.expand(), strict=True)
    torch.testing.assert_close(again(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)
