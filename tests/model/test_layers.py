"""The layers of a model: in execution order, by type, with their weights and their arithmetic."""

import math

import pytest
import torch
from torch import fx, nn
from torchvision import models

from dcil_dsl.model import trace_model
from dcil_dsl.model.layers import Weight, list_layers


def paths(model, **keywords):
    return [layer.path for layer in trace_model(model, **keywords).layers]


def layer_of(model, path, *shape):
    example = (torch.empty(shape),) if shape else None
    (found,) = [layer for layer in trace_model(model, example).layers if layer.path == path]
    return found


class Backwards(nn.Module):
    """Registered in the opposite order of use; `spare` is not used."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(4, 2)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.stem = nn.Linear(3, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.body(self.body(x)))


def test_layers_stand_in_the_order_of_their_first_use():
    assert paths(Backwards()) == ["stem", "body.0", "body.1", "body.2", "head"]


def test_a_module_that_is_not_used_is_no_layer():
    assert "spare" not in paths(Backwards())


class Standardized(nn.Conv2d):
    """A convolution of a user's own, which torch.fx traces into."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


def test_a_subclass_that_is_traced_into_is_a_layer_of_both_its_types():
    layer = layer_of(nn.Sequential(nn.ReLU(), Standardized(3, 4, 3)), "1")
    assert layer.types == ("Standardized", "Conv2d", "_ConvNd")
    assert (layer.type, layer.weights, layer.called) == ("Standardized", ("1.weight",), "1")


def test_the_weight_that_can_be_pruned_is_named_in_full():
    model = nn.Sequential(nn.Conv1d(2, 6, 3, groups=2), nn.BatchNorm1d(6), nn.ReLU())
    conv, norm, act = trace_model(model).layers
    assert conv.prunable == (Weight("0.weight", (6, 1, 3), groups=2),)
    assert norm.weights == act.weights == ()


def test_attention_stays_whole_and_shows_its_two_projections():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    whole, out = trace_model(Net()).layers
    assert (whole.path, whole.called) == ("attention", "attention")
    assert whole.prunable == (Weight("attention.in_proj_weight", (24, 8)),)
    assert (out.path, out.called) == ("attention.out_proj", "attention")
    assert out.prunable == (Weight("attention.out_proj.weight", (8, 8)),)


def test_layers_tied_to_one_weight_name_its_first_use():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)
            self.first = nn.Linear(4, 4)
            self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(self.first(x))

    assert [(a.path, a.weights) for a in trace_model(Tied()).layers] == [
        ("first", ("first.weight",)),
        ("last", ("first.weight",)),
    ]


class GPT2Linear(nn.Module):
    """The layout of GPT-2's layers, inputs first."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.ones(nx, nf))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    "build, weights",
    [
        (lambda: nn.Conv2d(4, 6, 3, groups=2), [("weight", (6, 2, 3, 3), 0, 1, 2)]),
        (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), [("weight", (4, 3, 3), 1, 0, 2)]),
        (lambda: nn.Embedding(9, 4), [("weight", (9, 4), 1, 0, 1)]),
        (lambda: nn.Bilinear(2, 3, 4), [("weight", (4, 2, 3), 0, 1, 1)]),
        (lambda: GPT2Linear(3, 5), [("weight", (5, 3), 1, 0, 1)]),
        (
            lambda: nn.GRUCell(2, 3),
            [("weight_ih", (9, 2), 0, 1, 1), ("weight_hh", (9, 3), 0, 1, 1)],
        ),
        (
            lambda: nn.LSTM(2, 4, proj_size=3),
            [
                ("weight_ih_l0", (16, 2), 0, 1, 1),
                ("weight_hh_l0", (16, 3), 0, 1, 1),
                ("weight_hr_l0", (3, 4), 0, 1, 1),
            ],
        ),
        (
            lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
            [
                ("q_proj_weight", (4, 4), 0, 1, 1),
                ("k_proj_weight", (4, 3), 0, 1, 1),
                ("v_proj_weight", (4, 2), 0, 1, 1),
            ],
        ),
        (lambda: nn.LayerNorm((3, 4)), []),
    ],
    ids="conv transposed embedding bilinear gpt2 grucell lstm attention norm".split(),
)
def test_every_weight_of_connections_is_known_with_its_axes(build, weights):
    model = nn.Sequential(build())
    graph = fx.Graph()
    graph.call_module("0", (graph.placeholder("x"),))
    layer = list_layers(model, graph)[0]
    assert layer.prunable == tuple(Weight(f"0.{name}", *facts) for name, *facts in weights)


def test_each_weight_of_an_lstm_meets_each_token_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    first = 20 * 4 + 20 * 5
    second = 20 * 10 + 20 * 5
    assert layer_of(Net(), "lstm", 2, 7, 4).macs == 7 * 2 * (first + second)


def test_a_parameter_that_the_model_reads_itself_makes_the_model_a_layer():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x * self.scale)

    assert paths(Scale()) == ["", "fc"]


# -- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, shape, macs",
    [
        (lambda: nn.Linear(5, 7), (2, 5), 5 * 7),
        (lambda: nn.Linear(5, 7), (2, 9, 5), 9 * 5 * 7),
        (lambda: nn.Conv1d(4, 6, 3), (2, 4, 10), 8 * 6 * 4 * 3),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 16 * 6 * 4 * 9),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), 36 * 6 * 2 * 9),
        (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        # Each weight of a transposed convolution meets every position of its input, edges too.
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 25 * 4 * 6 * 4),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 4),
    ],
    ids=["linear", "tokens", "conv1d", "conv2d", "groups", "conv3d", "transposed", "its groups"],
)
def test_multiplications_of_one_example_by_hand(build, shape, macs):
    assert layer_of(nn.Sequential(build()), "0", *shape).macs == macs


def test_a_layer_used_twice_costs_twice():
    model = Backwards()
    assert layer_of(model, "body.0", 3, 3).macs == 2 * 16
    assert layer_of(model, "head", 3, 3).macs == 8


def test_without_an_example_costs_are_not_known():
    assert layer_of(Backwards(), "head").macs is None


def test_a_model_that_runs_neither_on_shapes_nor_on_values_has_layers_without_costs():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            raise RuntimeError(f"not on {self.fc(x).device}")

    assert layer_of(Fails(), "fc", 2, 3).macs is None


@pytest.mark.parametrize(
    "name, size, macs, weights",
    [
        ("resnet18", 224, 1_814_073_344, 11_678_912),
        ("resnet50", 224, 4_089_184_256, 25_502_912),
        ("mobilenet_v2", 224, 300_774_272, 3_469_760),
    ],
)
def test_networks_cost_what_the_literature_says(name, size, macs, weights):
    with torch.device("meta"):  # no weight is read, so none is drawn
        model = models.get_model(name, weights=None)
    layers = trace_model(model.to_empty(device="cpu"), (torch.empty(2, 3, size, size),)).layers
    assert sum(layer.macs for layer in layers if layer.weights) == macs
    assert sum(math.prod(w.shape) for layer in layers for w in layer.prunable) == weights


def test_the_projections_of_a_vision_transformer_see_every_token():
    width, mlp, blocks, patches = 64, 128, 2, 16
    model = models.VisionTransformer(64, 16, blocks, 4, width, mlp, num_classes=10)
    layers = trace_model(model, (torch.empty(2, 3, 64, 64),)).layers
    block = (patches + 1) * (4 * width * width + 2 * width * mlp)
    stem, head = patches * width * 3 * 16 * 16, width * 10
    assert sum(layer.macs for layer in layers if layer.weights) == stem + blocks * block + head


def test_counting_costs_leaves_the_model_as_it_was():
    model = models.resnet18(num_classes=10).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace_model(model, (torch.empty(2, 3, 32, 32),))
    for net in (model, traced.model):
        assert all(module.training for module in net.modules())
        assert not any(module._forward_hooks for module in net.modules())
        state = net.state_dict()
        assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_arithmetic_of_a_model_that_looks_at_values_is_counted_and_leaves_no_trace():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            x = self.conv(x)
            return x if x.mean() > torch.rand(()) else -x

    model = Looks()
    layers = trace_model(model, torch.randn(2, 3, 8, 8)).layers
    [conv] = [layer for layer in layers if layer.prunable]
    assert conv.prunable[0].macs == 6 * 6 * 4 * 3 * 9
    assert model.calls == 0
