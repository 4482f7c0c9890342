"""Paths that draw the same random numbers, and paths that draw their own."""

import copy
import random

import numpy
import pytest
import torch
from nets import Drops, DropsWhole, Tiny, images
from torch import nn
from torch.nn import functional as F

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.masking.rng import drawn_apart
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.show import show_plan

RECIPE = """
language 1
prune Conv2d to 50%
mix {{
  path sparse = masked
  path dense  = full {settings}
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 2ep optimizer = sgd(lr=0.1) }}
"""


def compiled(model, settings):
    traced = trace_model(model, (images(),))
    plan = resolve_recipe(loads(RECIPE.format(settings=settings)), traced, steps_per_epoch=10)
    return compile_plan(plan, traced)


class DropsByNumpy(nn.Module):
    """As the masks in time of transformers' speech models; and a number of every generator."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x)
        kept = torch.from_numpy(numpy.random.rand(x.shape[1]) > 0.5).to(x.dtype)
        x = F.dropout(x, 0.5, self.training) * kept[:, None, None] * random.random()
        return self.head(x.mean((2, 3)))


def seed():
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)


@pytest.mark.parametrize("net", [Drops, DropsWhole, DropsByNumpy])
@pytest.mark.parametrize("settings, again", [("{ random = shared }", True), ("", False)])
def test_the_paths_equal_two_forwards_with_the_same_seed_or_one_after_the_other(
    net, settings, again
):
    model, target = net().double().train(), torch.tensor([0, 1, 2, 0])
    dual = compiled(model, settings).train()
    dual.begin_step(0)
    x = images(dtype=torch.float64)
    seed()
    outputs = dual(x)
    sum(F.cross_entropy(y, target) for y in outputs.values()).backward()

    sparse, dense = copy.deepcopy(model), copy.deepcopy(model)
    mask = dual.masks["conv.weight"]
    with torch.no_grad():
        sparse.conv.weight.mul_(mask)
    seed()
    y_sparse = sparse(x)
    if again:
        seed()
    y_dense = dense(x)
    (F.cross_entropy(y_sparse, target) + F.cross_entropy(y_dense, target)).backward()
    torch.testing.assert_close(outputs["sparse"], y_sparse, rtol=1e-12, atol=0)
    torch.testing.assert_close(outputs["dense"], y_dense, rtol=1e-12, atol=0)
    wanted = torch.where(mask, sparse.conv.weight.grad, dense.conv.weight.grad)
    torch.testing.assert_close(dual.conv.weight.grad, wanted, rtol=1e-9, atol=1e-15)


def test_equal_weights_and_shared_numbers_give_equal_paths_and_own_numbers_do_not():
    model = Drops().train()
    shared, own = compiled(model, "{ random = shared }").train(), compiled(model, "").train()
    x = images()
    with torch.no_grad():  # before the first step every weight is kept
        outputs = shared(x)
        assert torch.equal(outputs["sparse"], outputs["dense"])
        outputs = own(x)
    assert not torch.equal(outputs["sparse"], outputs["dense"])


def test_a_graph_without_random_numbers_restores_none():
    with_dropout, without = (compiled(net(), "{ random = shared }") for net in (Drops, Tiny))
    assert "draw_again" in str(with_dropout.graphs[True, 0])
    assert "draw_again" not in str(without.graphs[True, 0])


def test_the_plan_tells_and_keeps_it():
    plan = compiled(Drops(), "{ random = shared }").plan
    assert "dense = full: y = f(x; w), the random numbers of the first path" in show_plan(plan)
    assert Plan.from_json(plan.to_json()) == plan


def eight_gpus_not_in_use(monkeypatch):
    """Whoever asks for the state of one, or seeds it, starts it."""

    def start(*args):
        raise AssertionError("a GPU is started that nobody uses")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all", "_lazy_call"):
        monkeypatch.setattr(torch.cuda, name, start)


def test_tracing_comparing_and_compiling_start_no_gpu_that_is_not_in_use(monkeypatch):
    eight_gpus_not_in_use(monkeypatch)
    model = Drops()
    traced = compare_with_model(trace_model(model, (images(),)), model, (images(),))
    text = RECIPE.format(settings="").replace("loss", "private Conv2d loss", 1)
    text = text.replace("prune Conv2d to 50%", "prune Linear to 50%")
    compile_plan(resolve_recipe(loads(text), traced, steps_per_epoch=10), traced)


def test_numbers_drawn_apart_come_from_their_seed_and_leave_no_trace():
    def draw():
        return torch.rand(3).tolist(), random.random(), numpy.random.rand()

    seed()
    expected = draw()
    seed()
    with pytest.raises(ValueError), drawn_apart(7):
        first = draw()
        raise ValueError
    with drawn_apart(7):
        again = draw()
    assert first == again
    assert draw() == expected


def test_a_model_that_draws_from_numpy_is_compared_and_leaves_no_trace_there():
    model = DropsByNumpy()
    traced = trace_model(model, (images(),))
    seed()
    expected = numpy.random.rand()
    seed()
    traced = compare_with_model(traced, model, (images(),))
    assert list(traced.opaque) == [""]
    assert numpy.random.rand() == expected


def test_numbers_drawn_apart_on_gpus_in_use_leave_no_trace_there(monkeypatch):
    seeds, states = [], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["state of 0", "state of 1"])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", states.append)
    with drawn_apart(7):
        assert seeds == [7] and not states
    assert states == [["state of 0", "state of 1"]]
