"""Models that use torch.utils.checkpoint have the gradients of two plain copies of them."""

from functools import partial

import pytest
import torch
from support.comparison import RECIPE, compile_text, worst_difference
from support.two_forwards import weighted_squares
from torch import nn
from torch.distributed._composable import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils import checkpoint as library
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from dcil_dsl.model import trace_model
from dcil_dsl.model.inner_checkpoints import compiled

WIDTH = 8
SAVED = [torch.ops.aten.addmm.default]
selective = partial(create_selective_checkpoint_contexts, SAVED)


def block():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


class Net(nn.Module):
    """A linear layer, two blocks of which `call` runs each, a linear layer.

    call    (block, x) -> y, with a call of checkpoint in it
    decides  by numbers, so that the model cannot be traced
    """

    def __init__(self, call, decides=False, first=False):
        super().__init__()
        self.before = nn.Identity() if first else nn.Linear(WIDTH, WIDTH)
        self.one, self.two = block(), block()
        self.after = nn.Linear(WIDTH, WIDTH)
        self.call, self.decides = call, decides

    def forward(self, x):
        x = self.before(x)
        if self.decides and x.sum() == 1e9:
            return x
        return self.after(self.call(self.two, self.call(self.one, x)))


class Named(nn.Module):
    """checkpoint by name on methods, with numbers, None and keywords."""

    def __init__(self, reentrant):
        super().__init__()
        self.before, self.inner = nn.Linear(WIDTH, WIDTH), block()
        self.drop, self.reentrant = nn.Dropout(0.3), reentrant
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)

    def part(self, x, scale, other=None):
        x = self.drop(self.inner(x)) * scale
        return (x, x * 2) if other is None else (x + other, x * 2)

    def forward(self, x):
        x = self.before(x)
        if self.reentrant:
            one, two = self._gradient_checkpointing_func(self.part, x, 0.5, None)
        else:
            one, two = self._gradient_checkpointing_func(self.part, x, 0.5, other=x)
        return one + two


class Decorated(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.after = block(), nn.Linear(WIDTH, WIDTH)

    @checkpoint(use_reentrant=False) if torch.__version__ >= "2.14" else lambda f: f
    def part(self, x):
        return self.inner(x)

    def forward(self, x):
        return self.after(self.part(x))


CALLS = {
    "not reentrant": lambda part, x: checkpoint(part, x, use_reentrant=False),
    "reentrant": lambda part, x: checkpoint(part, x, use_reentrant=True),
    "by the module": lambda part, x: library.checkpoint(part, x, use_reentrant=False),
    "sequential": lambda part, x: checkpoint_sequential(part, 2, x, use_reentrant=False),
    "sequential, reentrant": lambda part, x: checkpoint_sequential(part, 2, x, use_reentrant=True),
    "selective": lambda part, x: checkpoint(
        part, x, use_reentrant=False, context_fn=selective, early_stop=False
    ),
    "checks": lambda part, x: checkpoint(
        part, x, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    ),
    "one within another": lambda part, x: checkpoint(
        lambda x: part(x) + checkpoint(part, x, use_reentrant=True), x, use_reentrant=False
    ),
    "a closure": lambda part, x: checkpoint(lambda y: part(y) + x, x * 2, use_reentrant=False),
}


def wrapped(implementation):
    net = Net(lambda part, x: part(x))
    net.one = checkpoint_wrapper(net.one, checkpoint_impl=implementation)
    return net


def hooked():
    net = Net(lambda part, x: part(x))
    composable(net.one)
    composable(net.after)
    return net


NETS = {
    "named, not reentrant": lambda: Named(False),
    "named, reentrant": lambda: Named(True),
    "decorated": Decorated,
    "wrapper": lambda: wrapped(CheckpointImpl.NO_REENTRANT),
    "wrapper, reentrant": lambda: wrapped(CheckpointImpl.REENTRANT),
    "hooks": hooked,
}


def numbers(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, WIDTH, dtype=torch.float64, generator=generator),), {}


def differ(build, **more):
    torch.manual_seed(0)
    more = {"prune": "Linear", "inputs": numbers, "steps": 3, "keep": ""} | more
    return worst_difference(build().double(), losses=weighted_squares, **more)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("decides", [False, True], ids=["traced", "whole"])
@pytest.mark.parametrize("name", CALLS)
def test_a_checkpoint_of_a_block_has_the_gradients_of_two_forwards(name, decides, training):
    assert differ(lambda: Net(CALLS[name], decides), training=training) < 1e-9
    for example in (None, torch.randn(4, WIDTH)):
        assert list(trace_model(Net(CALLS[name], decides), example).opaque) == [""] * decides


@pytest.mark.parametrize("name", NETS)
def test_a_checkpoint_in_another_shape_has_the_gradients_of_two_forwards(name):
    assert differ(NETS[name]) < 1e-9


@pytest.mark.parametrize("decides", [False, True], ids=["traced", "whole"])
def test_a_reentrant_checkpoint_of_an_input_without_gradient_gives_its_weights_none(decides):
    def build():
        return Net(CALLS["reentrant"], decides, first=True)

    model, (x,) = build().double(), numbers(0)[0]
    model(x).sum().backward()
    assert model.one[0].weight.grad is None
    assert differ(build) < 1e-9


class Differentiates(nn.Module):
    """Adds the gradient of an energy by what the first layer gives."""

    def __init__(self, decides):
        super().__init__()
        self.before, self.one, self.after = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.decides = decides

    def forward(self, x):
        x = self.before(x)
        if self.decides and x.sum() == 1e9:
            return x
        energy = self.one(x).tanh().pow(2).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return self.after(slope + x)


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize("decides", [False, True], ids=["traced", "whole"])
@pytest.mark.parametrize("name", ["reentrant", "sequential, reentrant", "differentiates"])
def test_a_path_without_a_share_of_the_layers_before_still_has_gradients_behind(
    name, decides, path
):
    """What is computed before the first pruned weight requires a gradient in a plain copy."""

    def build():
        return Net(CALLS[name], decides) if name in CALLS else Differentiates(decides)

    updates = f"update kept by sparse  update pruned by dense  update rest by {path}"
    rest = (1, 0) if path == "sparse" else (0, 1)
    shares = {"kept": (1, 0), "pruned": (0, 1), "rest": rest}
    assert differ(build, keep='keep "before"', updates=updates, shares=shares) < 1e-9


def test_torch_has_its_checkpoint_back_after_a_trace_that_failed_and_after_a_call():
    before = dict(vars(library)), dict(vars(library.CheckpointFunction))
    assert differ(lambda: Net(CALLS["reentrant"], decides=True)) < 1e-9
    assert (dict(vars(library)), dict(vars(library.CheckpointFunction))) == before


@pytest.mark.parametrize("breaks", [False, True], ids=["in one graph", "left to Python"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_a_compiled_step_with_a_checkpoint_kept_opaque_has_the_gradients_of_the_eager_one(
    reentrant, breaks
):
    def call(part, x):
        def run(x):
            if breaks:
                torch._dynamo.graph_break()
            return part(x)

        return checkpoint(run, x, use_reentrant=reentrant)

    text = RECIPE.format(
        prune="Linear",
        keep="",
        private="",
        sparsity="90%",
        updates="update kept by sparse  update pruned by dense",
    )
    torch.manual_seed(0)
    dual = compile_text(text, Net(call, decides=True).double()).train()
    dual.begin_step(0)
    (x,), _ = numbers(0)
    torch._dynamo.reset()
    found = []
    ways = (partial(compiled, backend="eager"), partial(torch.compile, backend="eager"))
    for forward in (dual, *(way(dual) for way in ways)):
        dual.zero_grad()
        weighted_squares(*forward(x).values(), None, 0).backward()
        found.append([p.grad.clone() for p in dual.parameters()])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-9, atol=1e-12)
