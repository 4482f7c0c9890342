"""Residual streams and the branches beside them, made smaller; a dead branch leaves as a whole."""

import torch
from support.zeroed import IMAGE, Residual, agree, dead, enliven, numel, residual
from torch import nn

from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.load import rebuild_compact


def test_a_channel_of_a_residual_stream_leaves_only_with_all_that_write_it():
    model = residual()
    dead(model.stem, 0, 1)
    dead(model.b, 1, 2)
    result = compact(model, IMAGE)
    assert result.shapes.tensors["stem.weight"].kept[0] == (0, 2, 3, 4, 5)
    assert result.shapes.tensors["head.weight"].kept[1] == (0, 2, 3, 4, 5)
    agree(result, model)
    assert ("stem.weight", 1, "`b` (Conv2d) writes the same channel") in [
        (stay.weight, stay.count, stay.reason) for stay in result.stays
    ]


def test_a_layer_that_is_dead_behind_a_residual_leaves_with_its_branch():
    model = residual()
    dead(model.b, *range(6))
    result = compact(model, IMAGE)
    # what stays: stem 6 x 27 and bias, the bias of b, the head 4 x 6 and bias
    assert numel(result.model) == 6 * 27 + 6 + 6 + 4 * 6 + 4
    assert result.shapes.replaced == ("b",)
    agree(result, model)
    again = Residual().double().eval()
    again.load_state_dict(result.expand(), strict=True)
    torch.testing.assert_close(again(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)
    rebuilt = rebuild_compact(result.shapes, result.tensors, Residual().double())
    assert torch.equal(rebuilt(*IMAGE), result.model(*IMAGE))


def test_a_branch_is_replaced_where_its_constant_goes_through_an_activation():
    class Net(Residual):
        def forward(self, x):
            x = self.stem(x)
            return self.head(x * self.norm(self.a(x)).sigmoid()[:, :6])

    torch.manual_seed(0)
    model = enliven(Net()).double()
    dead(model.a, *range(8))
    assert compact(model, IMAGE).shapes.replaced == ()  # the slice is of a whole tensor

    class Direct(Residual):
        def forward(self, x):
            x = self.stem(x)
            return self.head(x * self.b(self.a(x)).sigmoid())

    model = enliven(Direct()).double()
    dead(model.b, *range(6))
    result = compact(model, IMAGE)
    assert result.shapes.replaced == ("b",)
    agree(result, model)


def test_a_branch_that_ends_without_a_bias_stays_one_channel_wide():
    class Net(Residual):
        def __init__(self):
            super().__init__()
            self.b = nn.Conv2d(8, 6, 3, padding=1, bias=False)

    torch.manual_seed(0)
    model = enliven(Net()).double()
    dead(model.b, *range(6))
    result = compact(model, IMAGE)
    assert result.model.a.weight.shape == (1, 6, 3, 3)
    assert result.model.b.weight.shape == (6, 1, 3, 3)
    agree(result, model)


def test_a_branch_that_writes_into_what_others_read_stays():
    class Net(Residual):
        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.b(self.a(x.relu_())))

    torch.manual_seed(0)
    model = enliven(Net()).double()
    dead(model.b, *range(6))
    result = compact(model, IMAGE)
    assert result.shapes.replaced == ()
    agree(result, model)
