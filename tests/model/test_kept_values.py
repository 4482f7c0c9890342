"""Objects that a forward returns, and memos that it keeps for later calls."""

import operator

import pytest
import torch
from torch import fx, nn

from dcil_dsl.model import trace_model
from dcil_dsl.model.compare import compare_with_model

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def compared(model):
    return compare_with_model(trace_model(model, (X,)), model, (X,))


def ran(traced, x=X, training=False):
    return fx.GraphModule(traced.model, traced.graph(training)).train(training)(x)


class Layer:
    keys = None


class Cache:
    """What a decoder returns for its next step: objects with tensors and settings."""

    def __init__(self):
        self.layers, self.seen, self.names = [], 0, {"kind": "keys"}

    def update(self, keys):
        layer = Layer()
        layer.keys = keys
        self.layers.append(layer)
        self.seen += 1


class Decoder(nn.Module):
    def __init__(self, fill=Cache.update):
        super().__init__()
        self.one, self.two, self.fill = nn.Linear(4, 4), nn.Linear(4, 4), fill

    def forward(self, x):
        cache = Cache()
        self.fill(cache, self.one(x))
        return {"logits": self.two(x), "cache": cache}


def test_a_returned_object_is_made_anew_in_each_call():
    model = Decoder()
    traced = compared(model)
    assert traced.opaque == {}
    first, second = ran(traced), ran(traced, 2 * X)
    assert type(first["cache"]) is Cache and first["cache"] is not second["cache"]
    assert first["cache"].seen == 1 and first["cache"].names == {"kind": "keys"}
    assert torch.equal(first["cache"].layers[0].keys, model.one(X))
    first["cache"].update(X)  # its list is one of Python
    assert len(second["cache"].layers) == 1


def test_a_tensor_in_a_returned_object_is_compared():
    def fill(cache, keys):
        cache.update(keys * 3)

    model = Decoder(fill)
    traced = trace_model(model, (X,))
    (scaled,) = traced.train.find_nodes(op="call_function", target=operator.mul)
    scaled.args = (scaled.args[0], 2)
    assert traced.eval is traced.train
    assert list(compare_with_model(traced, model, (X,)).opaque) == [""]


def itself(cache, keys):
    cache.update(keys)
    cache.owner = cache


def with_a_module(cache, keys):
    cache.update(keys)
    cache.module = nn.Linear(1, 1)


@pytest.mark.parametrize("fill", [itself, with_a_module])
def test_an_object_that_holds_itself_or_a_module_is_not_made_anew(fill):
    assert list(trace_model(Decoder(fill), (X,)).opaque) == [""]


# -- memos -----------------------------------------------------------------------------------------


class Biased(nn.Module):
    """A layer with a memo of twice its weight, as attention keeps its bias in evaluation mode.

    forgets   when training begins
    in_train  it is kept in training mode too
    """

    def __init__(self, forgets=True, in_train=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.memo, self.forgets, self.in_train = {}, forgets, in_train

    def train(self, mode=True):
        if mode and self.forgets:
            self.memo = {}
        return super().train(mode)

    def forward(self, x):
        if self.training and not self.in_train:
            return x + 2 * self.weight
        if "bias" not in self.memo:
            self.memo["bias"] = 2 * self.weight.detach()
        return x + self.memo["bias"]


def net(part):
    return nn.Sequential(nn.Linear(4, 4), part)


def test_a_memo_of_weights_that_training_forgets_is_computed_in_each_call():
    model = net(Biased())
    traced = compared(model)
    assert traced.opaque == {} and traced.memos == {"1": True}
    assert traced.model[1].memo == {}
    with torch.no_grad():
        traced.model[1].weight.add_(1)
        model[1].weight.add_(1)
    assert torch.equal(ran(traced), model.eval()(X))


def test_a_memo_that_outlives_training_is_kept_by_the_module():
    assert list(compared(net(Biased(forgets=False))).opaque) == ["1"]


def test_a_memo_of_training_mode_is_kept_by_the_module():
    assert list(compared(net(Biased(in_train=True))).opaque) == ["1"]


class Table(nn.Module):
    """A memo of a table of numbers, made at the first call."""

    table = None

    def __init__(self, grows=False):
        super().__init__()
        self.layer, self.grows = nn.Linear(4, 4), grows

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(4.0)
        elif self.grows:
            return self.layer(x)
        return self.layer(x) + self.table


def test_a_memo_of_a_constant_is_a_constant_of_the_graph():
    traced = compared(net(Table()))
    assert traced.opaque == {} and traced.memos == {"1": False}


def test_a_module_whose_second_call_differs_stays_opaque():
    assert list(compared(net(Table(grows=True))).opaque) == ["1"]


class Window(nn.Module):
    """It sets a setting from the size of its input in each call."""

    def __init__(self, window):
        super().__init__()
        self.layer, self.window = nn.Conv2d(3, 3, 1), window

    def forward(self, x):
        self.window = min(x.shape[2], self.window)
        return self.layer(x)[:, :, : self.window]


@pytest.mark.parametrize(("window", "opaque"), [(2, []), (4, []), (7, [""])])
def test_a_number_that_is_set_to_what_it_is_changes_nothing(window, opaque):
    x = torch.randn(2, 3, 4, 4)
    assert list(trace_model(Window(window), (x,)).opaque) == opaque
