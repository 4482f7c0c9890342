"""Operations of people's networks: norms as functions, tensors side by side, sums, decoders."""

import pytest
import torch
import torch.nn.functional as F
from support.zeroed import IMAGE, agree, dead, enliven, numel
from torch import nn

from dcil_dsl.extras.compact.compaction import compact
from dcil_dsl.extras.compact.load import rebuild_compact


def ready(net, seed=0):
    torch.manual_seed(seed)
    return enliven(net).double()


class NormByHand(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: its forward calls the function with its own tensors."""

    def forward(self, x):
        assert x.ndim == 4
        training = self.training
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps
        )
        return x.relu()


class GroupNormByHand(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps).relu()


@pytest.mark.parametrize("padding, left", [(0, 5), (1, 6)])
def test_a_batch_norm_that_is_a_function_shrinks_with_its_convolution(padding, left):
    def net():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            NormByHand(8),
            nn.Conv2d(8, 6, 3, padding=padding, bias=False),
            NormByHand(6),
            nn.Conv2d(6, 4, 1),
        )

    model = ready(net())
    dead(model[0], 1, 2, 5)
    model[1].bias.data[:] = model[1].bias.abs() + 1  # so that a dead channel is no zero
    result = compact(model, IMAGE)
    # Without padding the running mean of the next norm takes the constants, else a carrier does.
    assert result.model[0].weight.shape[0] == result.model[1].num_features == left
    assert len(result.model[1].running_mean) == left and result.difference < 1e-12
    agree(result, model)
    rebuilt = rebuild_compact(result.shapes, result.tensors, net().double())
    torch.testing.assert_close(rebuilt(*IMAGE), model(*IMAGE), rtol=1e-11, atol=1e-11)


def test_a_running_mean_that_two_norms_read_takes_no_constant():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 6, 1), NormByHand(6)
            self.b, self.c = (nn.Conv2d(6, 6, 1, bias=False) for _ in range(2))

        def forward(self, x):
            x = self.a(x).relu()
            return self.norm(self.b(x)) + self.norm(self.c(x))

    model = ready(Net())
    dead(model.a, 0, 3)
    model.a.bias.data[[0, 3]] = 2.0
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == 5  # one carries the constant of the other
    agree(result, model)


def test_a_group_norm_that_is_a_function_loses_whole_groups():
    model = ready(nn.Sequential(nn.Conv2d(3, 8, 1), GroupNormByHand(4, 8), nn.Conv2d(8, 3, 1)))
    dead(model[0], 2, 3)
    model[0].bias.data[[2, 3]] = 0.0
    model[1].bias.data[[2, 3]] = 0.0
    model[2].weight.data[:, [2, 3]] = 0.0
    result = compact(model, IMAGE)
    assert len(result.tensors["0.weight"]) == 6
    agree(result, model)


def test_what_is_concatenated_along_another_axis_shrinks_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.c = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], dim=2).relu())

    model = ready(Net())
    dead(model.a, 0, 1, 2)
    dead(model.b, 1, 2, 4)
    for layer in (model.a, model.b):
        layer.bias.data[:] = 0.0
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == result.model.b.out_channels == 4
    assert result.shapes.tensors["a.weight"].kept[0] == (0, 3, 4, 5)
    agree(result, model)


def test_tokens_of_two_layers_side_by_side_shrink_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            return self.c(torch.stack([self.a(x), self.b(x)], dim=1).relu())

    model = ready(Net())
    dead(model.a, 0, 5)
    dead(model.b, 0, 4)
    for layer in (model.a, model.b):
        layer.bias.data[0] = 0.7  # one constant at every place
    result = compact(model, IMAGE)
    assert result.model.a.out_features == result.model.b.out_features == 5
    agree(result, model)


def test_the_rows_that_a_decoder_folds_into_an_image_go_channel_by_channel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 4 * 3 * 3)
            self.norm = nn.BatchNorm2d(4)
            self.up = nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1, bias=False)
            self.out = nn.Conv2d(5, 2, 1)

        def forward(self, x):
            x = self.fc(x.mean((2, 3)).repeat(1, 4)).view(-1, 4, 3, 3)
            return self.out(self.up(self.norm(x).relu()).relu())

    model = ready(Net())
    dead(model.fc, *range(9, 18), 20)  # all of channel 1, and a row of another
    model.fc.bias.data[9:18] = 0.0
    model.norm.bias.data[1] = -9.0
    result = compact(model, IMAGE)
    assert result.model.fc.weight.shape == (27, 12)
    assert result.model.up.in_channels == 3
    agree(result, model)


def test_a_sum_over_all_channels_loses_those_that_are_zero_and_no_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.b(self.a(x).relu().sum(1, keepdim=True))

    model = ready(Net())
    dead(model.a, 1, 2)
    model.a.bias.data[:3] = torch.tensor([1.0, -1.0, 1.0])
    result = compact(model, IMAGE)
    assert result.shapes.tensors["a.weight"].kept[0] == (0, 2, 3, 4, 5)
    assert [stay.reason for stay in result.stays] == ["`sum` adds it up"]
    agree(result, model)


def test_a_mean_over_all_channels_keeps_them_since_it_divides_by_their_number():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.b(self.a(x).relu().mean(1, keepdim=True))

    model = ready(Net())
    dead(model.a, 1, 2)
    result = compact(model, IMAGE)
    assert result.model.a.out_channels == 6
    assert {stay.reason for stay in result.stays} == {"`mean` mixes them"}


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_sum_over_branches_joins_them_as_an_addition_does(keepdim):
    class Net(nn.Module):
        """As split attention: two branches side by side, added up."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.a(x)
            x = x.reshape(x.shape[0], 2, 4, x.shape[2], x.shape[3]).sum(1, keepdim=keepdim)
            return self.b((x.squeeze(1) if keepdim else x).relu())

    model = ready(Net())
    dead(model.a, 1, 5, 2)
    model.a.bias.data[[1, 5, 2]] = 0.0
    result = compact(model, IMAGE)
    assert result.shapes.tensors["a.weight"].kept[0] == (0, 2, 3, 4, 6, 7)
    agree(result, model)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "regnety_002", "seresnext26d_32x4d"])
def test_timms_networks_lose_what_tied_filters_leave(name):
    timm = pytest.importorskip("timm")
    import dcil_dsl as dcil
    from dcil_dsl.lang import loads

    torch.manual_seed(0)
    model = enliven(timm.create_model(name, num_classes=4)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    recipe = loads(
        "language 1\nprune Conv2d to 50% { granularity = filter }\nmix { path sparse = masked\n"
        "update kept, pruned by sparse\nloss cross_entropy(sparse)\ndeploy sparse }\n"
        "train { epochs = 1ep  optimizer = sgd(lr=0.1) }"
    )
    plan = dcil.resolve(recipe, model, steps_per_epoch=2, example_inputs=(x,))
    dual = dcil.compile(plan, model)
    dual.refresh(plan.num_steps - 1)
    sparse = dcil.export(dual)
    result = dcil.compact(sparse, (x,), num_inputs=2)
    assert result.difference < 1e-12
    assert numel(result.model) < 0.31 * numel(model)


def test_a_model_in_training_mode_is_compacted_as_it_evaluates():
    net = (nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))
    model = ready(nn.Sequential(*net)).train()
    dead(model[0], 1, 2, 5)
    result = compact(model, IMAGE)
    assert model.training and result.model[0].out_channels == 5
    agree(result, model.eval())
