"""What stays, and why; what is refused; which inputs are taken."""

import pytest
import torch
from support.zeroed import IMAGE, dead, double, numel
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.compaction import compact


def test_channels_of_which_a_layer_norm_takes_the_mean_stay_with_the_reason():
    model = double(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    dead(model[0], 1, 2)
    result = compact(model, (torch.randn(4, 3).double(),))
    assert result.model[0].out_features == 8
    assert [(s.count, s.reason) for s in result.stays] == [(2, "`1` (LayerNorm) mixes them")]


def test_no_layer_norm_of_fewer_channels_gives_what_the_whole_one_gives():
    """Where every channel that stays has one value, a norm of those alone gives its bias, whatever
    the value is and whatever its weights are. The whole norm also sees the zeros of the others."""
    width, kept = 8, 4
    whole = nn.LayerNorm(width).double()
    nn.init.normal_(whole.weight), nn.init.normal_(whole.bias)
    x = torch.zeros(2, width, dtype=torch.float64)
    x[0, :kept], x[1, :kept] = 1.0, -1.0
    fewer = nn.LayerNorm(kept).double()
    one, other = fewer(x[:, :kept])
    assert torch.equal(one, other) and torch.equal(one, fewer.bias)
    one, other = whole(x)[:, :kept]
    assert ((one - other).abs() > whole.weight[:kept].abs()).all()


def test_an_operation_that_is_not_understood_keeps_its_channels_with_the_reason():
    model = double(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1))
    dead(model[0], 0, 1, 2, 3)
    result = compact(model, IMAGE)
    assert numel(result.model) == numel(model)
    assert result.stays[0].reason == "`1` (PixelShuffle) is not one of the operations understood"


def test_two_networks_that_differ_are_refused(monkeypatch):
    from dcil_dsl.extras.compact import compaction as module

    monkeypatch.setattr(module, "fold_constants", lambda *_: {})
    model = double(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    dead(model[0], 1)
    with torch.no_grad():
        model[0].bias[1] = 1.0
    with pytest.raises(InputError, match="the small network differs from the original by"):
        compact(model, IMAGE)


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be traced"):
        compact(Net(), IMAGE)


def test_an_empty_batch_is_refused_in_plain_words():
    model = double(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    with pytest.raises(InputError, match="an empty batch\none example is enough"):
        compact(model, (torch.zeros(0, 3, 6, 6).double(),))


def test_what_is_written_into_is_no_constant_for_its_other_readers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.a(x)
            y.relu_()
            return self.b(y)

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 1)
    with torch.no_grad():
        model.a.bias[1] = -1.0
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == 4


def test_a_condition_is_looked_at_as_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.register_buffer("chosen", torch.tensor([True, False, True, False])[:, None, None])

        def forward(self, x):
            y = self.a(x)
            y = torch.where(y > 0, y, 0.1 * y)
            return self.b(torch.where(self.chosen, y, 2.0))

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 1)
    small = compact(model, IMAGE).model
    torch.testing.assert_close(small(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)


def test_what_is_picked_by_a_tensor_of_indices_is_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

        def forward(self, x):
            return self.b(self.a(x)[:, self.order])

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 1)
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == 4
    assert result.stays[0].reason == "`getitem` is not one of the operations understood"


def test_a_weight_that_is_computed_at_each_call_is_left_alone():
    norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 2, 1)).double()
    dead(model[0], 1)
    assert numel(compact(model, IMAGE).model) == numel(model)


def test_a_module_that_tracing_kept_whole_keeps_what_it_reads_and_shares():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.branch, self.b = nn.Conv2d(3, 4, 1), Branch(), nn.Conv2d(4, 4, 1)
            self.b.weight, self.c = self.branch.inner.weight, nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.branch(self.a(x))))

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 0)
    dead(model.b, 1)
    result = compact(model, IMAGE)
    assert numel(result.model) == numel(model)
    first, second = (stay.reason for stay in result.stays)
    assert first.startswith("`branch` (Branch) is kept opaque: ")
    assert second.startswith("`branch` (Branch) is kept opaque: ")


def test_inputs_may_go_by_name_and_be_whole_numbers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, tokens, scale=None):
            x = self.a(self.words(tokens)).relu()
            return {"out": self.b(x if scale is None else x * scale)}

    torch.manual_seed(0)
    model = Net().double()
    dead(model.a, 0, 5)
    with torch.no_grad():
        model.a.bias[[0, 5]] = 0.0
    given = {"tokens": torch.tensor([[1, 8, 3]]), "scale": torch.ones(1, 3, 1).double()}
    result = compact(model, given)
    assert result.model.a.out_features == 4
    other = {"tokens": torch.tensor([[0, 2], [5, 4]]), "scale": torch.rand(2, 2, 1).double()}
    torch.testing.assert_close(result.model(**other)["out"], model(**other)["out"])
    with pytest.raises(InputError, match="`scale` is of type list"):
        compact(model, given | {"scale": [2.0]})


def test_outputs_that_are_nan_are_no_agreement():
    """max(0.0, nan) is 0.0: such networks were said to agree."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_var[2] = torch.nan
    with pytest.raises(InputError, match="hold numbers that are not finite"):
        compact(model, torch.randn(2, 3, 8, 8))
