"""A backward pass of a model's own is kept, or the model is refused with the module's name."""

import copy

import pytest
import torch
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from torch import nn

from dcil_dsl.model import TraceError, trace_model
from dcil_dsl.model.compare import compare_with_model

WIDTH = 8


class Reverses(torch.autograd.Function):
    """Gives back what it was given, so that a graph of its forward is empty."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Again(torch.autograd.Function):
    """Computes `part` again in its backward pass, with the weights that it has by then."""

    @staticmethod
    def forward(ctx, part, x, *weights):
        ctx.part = part
        ctx.save_for_backward(x)
        return part(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.part(x)
            return None, *torch.autograd.grad(y, [x, *ctx.part.parameters()], gradient)


class Lands(Again):
    """The same, and puts the gradients of the weights on the weights themselves."""

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.part(x).backward(gradient)
        return (None, x.grad, *[None for _ in ctx.part.parameters()])


class Reversible(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.part = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.function = function

    def forward(self, x):
        return self.function.apply(self.part, x, *self.part.parameters())


class Aside(nn.Module):
    """Reads its weight by another name, under which nothing else can be given to it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.kept = [self.inner.weight]

    def forward(self, x):
        return x @ self.kept[0] if x.sum() != 1e9 else x


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x):
        return self.function.apply(self.inner(x))


def around(part):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), part, nn.Linear(WIDTH, WIDTH)).double()


def numbers(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, WIDTH, dtype=torch.float64, generator=generator),), {}


@pytest.mark.parametrize("function", [Reverses, Rounds])
def test_a_function_with_a_backward_of_its_own_has_the_gradients_of_two_forwards(function):
    model = around(Calls(function))
    found = worst_difference(
        model, prune="Linear", keep="", inputs=numbers, steps=3, losses=weighted_squares
    )
    assert found < 1e-9
    assert list(trace_model(model).opaque) == ["1"]


@pytest.mark.parametrize("function", [Reverses, Rounds])
def test_where_no_gradients_are_computed_such_a_function_stays_opaque_too(function):
    with torch.no_grad():
        assert list(trace_model(around(Calls(function))).opaque) == ["1"]


class CopiesALayer(nn.Module):
    """A copy of a layer in each call: torch copies no weight that is computed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.no_grad():
            return copy.deepcopy(self.layer)(x) + x


@pytest.mark.parametrize(
    "part, reason",
    [
        (CopiesALayer, "graph fails in .* mode: Only Tensors created explicitly"),
        (lambda: Reversible(Again), "other gradients"),
        (lambda: Reversible(Lands), "other gradients"),
        (lambda: Aside(), "other numbers"),
    ],
    ids=["copies a layer", "computes again", "puts gradients on weights", "another name"],
)
def test_a_module_that_reads_weights_of_its_own_is_refused_by_name(part, reason):
    model, (x,) = around(part()), numbers(0)[0]
    with pytest.raises(TraceError, match=f"`1`.*{reason}"):
        compare_with_model(trace_model(model, (x,)), model, (x,))
    with pytest.raises(TraceError, match=f"the forward of .*{reason}"):
        alone = part().double()
        compare_with_model(trace_model(alone, (x,)), alone, (x,))


def test_a_graph_with_other_gradients_than_its_model_is_kept_opaque():
    class Marks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            y = self.inner(x)
            # The numbers are the same either way, and a graph takes one way for both modes.
            return y.detach() + 0 * y if type(y) is torch.Tensor else y

    model, (x,) = around(Marks()), numbers(0)[0]
    traced = trace_model(model, (x,))
    assert not traced.opaque
    assert list(compare_with_model(traced, model, (x,)).opaque) == ["1"]


def test_what_a_dataclass_returns_is_compared_too():
    from dataclasses import dataclass

    @dataclass
    class Output:
        scores: object

    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            y = self.inner(x)
            return Output(y if type(y) is torch.Tensor else 2 * y)

    model, (x,) = Forks().double(), numbers(0)[0]
    assert list(compare_with_model(trace_model(model, (x,)), model, (x,)).opaque) == [""]
