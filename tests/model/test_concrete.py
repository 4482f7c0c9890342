"""What a forward takes as values of Python is part of the graph if no call may change it."""

import math

import pytest
import torch
from torch import fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model import trace_model
from dcil_dsl.model.compare import compare_with_model


class Uses(nn.Module):
    """A convolution, then what `rule` makes of its output."""

    def __init__(self, rule, **attributes):
        super().__init__()
        self.layer, self.rule = nn.Conv2d(3, 4, 1), rule
        vars(self).update(attributes)

    def forward(self, x):
        return self.rule(self, self.layer(x))


def image(batch=2, side=4):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def ran(traced, *inputs, training=False):
    return fx.GraphModule(traced.model, traced.graph(training)).train(training)(*inputs)


def compared(model, x):
    return compare_with_model(trace_model(model, (x,)), model, (x,))


def windows(net, y):
    side = int(math.sqrt(y.flatten(2).shape[2]) / 2)
    return y.unflatten(3, (2, side)).sum(3)


class Shown:
    """What numpy and others ask an object for."""

    def __init__(self, sizes):
        assert not hasattr(sizes, "__array_struct__")


RULES = {
    "int": windows,
    "range": lambda net, y: sum(y[:, :, i] for i in range(y.shape[2])),
    "index": lambda net, y: y * [0, 1, 2, 3, 4][y.shape[2]],
    "float": lambda net, y: y * float(y.shape[3]),
    "rank as a key": lambda net, y: y.sum({3: (1,), 4: (1, 2)}[y.ndim]),
    "rank by a method": lambda net, y: y.sum([None, None, None, 2, 3][y.dim()]),
    "protocol": lambda net, y: (Shown(y.shape), y)[1],
    "type of a sum": lambda net, y: y.clamp(max=1) if (y + 1).dtype == torch.float64 else y,
    "no such device": lambda net, y: y if y.device.type != "meta" else -y,
    "layout": lambda net, y: y if y.layout == torch.strided else -y,
    "is a tensor": lambda net, y: 2 * y if torch.is_tensor(y) else y,
    "instance": lambda net, y: 2 * y if isinstance(y, (tuple, torch.Tensor)) else y,
    "not callable": lambda net, y: y() if callable(y) else 2 * y,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_value_of_python_that_no_batch_changes_is_part_of_the_graph(rule):
    model = Uses(rule)
    traced = compared(model, image())
    assert traced.opaque == {}
    for batch in (1, 2, 5):
        assert torch.equal(ran(traced, image(batch)), model(image(batch)))


@pytest.mark.parametrize("name", ["int", "range", "index", "float"])
def test_images_of_other_sizes_are_refused_where_a_size_is_part_of_the_graph(name):
    traced = trace_model(Uses(RULES[name]), (image(),))
    with pytest.raises(InputError, match="was made for inputs of other sizes"):
        ran(traced, image(side=6))


def test_the_length_of_a_sequence_is_no_part_of_the_graph():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4)

        def forward(self, ids):
            return sum(self.embed(ids)[:, i] for i in range(ids.shape[1]))

    model = Tokens()
    traced = trace_model(model, (torch.ones(2, 5, dtype=torch.long),))
    assert list(traced.opaque) == [""]
    longer = torch.ones(2, 8, dtype=torch.long)
    assert torch.equal(ran(traced, longer), model(longer))


def test_where_any_size_may_differ_no_number_is_part_of_the_graph():
    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, edges):
            return self.layer(x)[: int(edges.shape[1])]

    given = (torch.randn(6, 4), torch.zeros(2, 5, dtype=torch.long))
    assert list(trace_model(Edges(), given).opaque) == [""]


def test_a_type_that_autocast_changes_decides_nothing():
    model = Uses(lambda net, y: y.clamp(max=1) if y.dtype == torch.bfloat16 else y)
    assert list(trace_model(model, (image(),)).opaque) == [""]


def test_a_device_that_a_run_may_have_decides_nothing():
    model = Uses(lambda net, y: -y if y.device.type == "cuda" else y)
    assert list(trace_model(model, (image(),)).opaque) == [""]


# -- operations ------------------------------------------------------------------------------------


def written(net, y):
    y = y * 2
    y[:, 1:, 0] = y[:, :1, 0] * 3
    return y


def shared_write(net, y):
    view = y.mul(2).flatten(2)
    view[..., 0] += y.sum((2, 3))
    return view


def without_gradient(net, y):
    with torch.no_grad():
        scale = y.abs().amax((1, 2, 3), keepdim=True) + y.shape[1]
    return y / scale


def part_without_gradient(net, y):
    with torch.no_grad():
        signs = (y * net.layer.bias.view(-1, 1, 1)).tanh()
    return y + (signs - y).detach() * y


OPERATIONS = {
    "item assignment": written,
    "item assignment by a view": shared_write,
    "no_grad": without_gradient,
    "no_grad of weights": part_without_gradient,
}


@pytest.mark.parametrize("rule", OPERATIONS.values(), ids=OPERATIONS)
def test_operation_is_traced_with_the_numbers_and_gradients_of_the_model(rule):
    assert compared(Uses(rule), image()).opaque == {}


def test_a_write_under_no_grad_is_not_traced():
    def rule(net, y):
        y = y * 2
        with torch.no_grad():
            y.mul_(3)
        return y

    model = Uses(rule)
    assert list(compared(model, image()).opaque) == [""]


einops = pytest.importorskip("einops")
EINOPS = {
    "rearrange": lambda net, y: einops.rearrange(y, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2),
    "mean": lambda net, y: einops.reduce(y, "b c h w -> b c", "mean"),
    "max": lambda net, y: einops.reduce(y, "b c (h p) w -> b c h", "max", p=2),
    "repeat": lambda net, y: einops.repeat(y, "b c h w -> (r b) c h w", r=3),
    "of a list": lambda net, y: einops.rearrange([y, 2 * y], "n b c h w -> b (n c) h w"),
    "einsum": lambda net, y: einops.einsum(y, y, "b c h w, b d h w -> b c d"),
}


@pytest.mark.parametrize("rule", EINOPS.values(), ids=EINOPS)
def test_einops_is_traced_to_operations_of_torch_and_takes_any_batch(rule):
    model = Uses(rule)
    traced = compared(model, image())
    assert traced.opaque == {}
    assert not any("einops" in str(node.target) for node in traced.train.nodes)
    assert torch.equal(ran(traced, image(5)), model(image(5)))


def test_layers_of_einops_are_traced_and_einops_forgets_the_tracer():
    from einops import _backends
    from einops.layers.torch import EinMix, Rearrange, Reduce

    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        Rearrange("b c (h p) w -> b h (p w) c", p=2),
        EinMix("b h n c -> b h n d", weight_shape="c d", bias_shape="d", c=4, d=6),
        Reduce("b h n d -> b d", "mean"),
    )
    assert compared(model, image()).opaque == {}
    assert all(issubclass(kind, (torch.Tensor, list)) for kind in _backends._type2backend)
