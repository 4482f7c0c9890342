"""Odd but legal models, made smaller: tied weights, layers of no rows, few digits, flags, masks."""

import pytest
import torch
from support.zeroed import IMAGE, dead, enliven
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.load import rebuild_compact


def test_a_weight_that_only_a_dead_branch_shares_keeps_its_values_under_both_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.live, self.tied = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(2))
            self.tied.weight = self.live.weight
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.live(self.stem(x).relu())
            return self.head(x + self.norm(self.tied(x)))

    torch.manual_seed(0)
    model = enliven(Net()).double()
    with torch.no_grad():
        model.norm.weight.zero_()
    result = compact(model, IMAGE)
    assert result.shapes.replaced == ("norm",)
    again = Net().double().eval()
    again.load_state_dict(result.expand(), strict=True)
    rebuilt = rebuild_compact(result.shapes, result.tensors, Net().double())
    for network in (result.model, again, rebuilt):
        torch.testing.assert_close(network(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_rounding_does_in_a_type_of_few_digits_is_no_difference(dtype):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = enliven(nn.Sequential(*layers)).to(dtype)
    dead(model[0], 1, 2, 3)
    dead(model[2], 0, 5)
    result = compact(model, (IMAGE[0].to(dtype),))
    assert result.model[2].weight.shape == (6, 5, 1, 1)
    assert 0 < result.difference < 0.01


def test_a_layer_of_no_rows_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.ReLU(), nn.Linear(3, 2))
    result = compact(model, (torch.randn(2, 4),))
    assert result.model[0].weight.shape == (0, 4)
    torch.testing.assert_close(result.model(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_a_state_that_is_no_tensor_is_refused():
    class Net(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(InputError, match="`_extra_state` of the state dict is not a tensor"):
        compact(Net(3, 2), (torch.ones(1, 3),))


def test_a_flag_of_the_example_is_given_to_the_small_network_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(2, 2)

        def forward(self, x, scale=1.0, *, shift=0.0):
            return self.b(self.a(x) * scale + shift)

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 1)
    given = {"shift": 0.25, "scale": 0.5, "x": IMAGE[0]}
    result = compact(model, given)
    torch.testing.assert_close(result.model(**given), model(**given))
    torch.testing.assert_close(result.model(IMAGE[0], 0.5, shift=0.25), model(**given))
    with pytest.raises(AssertionError, match="`scale` is not 0.5"):
        result.model(**given | {"scale": 2.0})
    with pytest.raises(TypeError, match="shift"):
        result.model(IMAGE[0], 0.5)
    rebuilt = rebuild_compact(result.shapes, result.tensors, Net().double())
    torch.testing.assert_close(rebuilt(**given), model(**given))


def test_outputs_that_are_masks_numbers_and_empty_are_compared_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            y = self.b(self.a(x).relu())
            return y, y > 0, y.argmax(1), y[:, :0]

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 2, 3)
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == 4
    for small, whole in zip(result.model(*IMAGE), model(*IMAGE), strict=True):
        torch.testing.assert_close(small, whole)
