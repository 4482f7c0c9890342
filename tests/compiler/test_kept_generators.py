"""Random number generators that a model keeps: each path draws what a plain copy would draw."""

import random

import numpy
import pytest
import torch
from support.nets import images
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.generators import kept_generators
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.resolve import resolve_recipe

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
GLOBAL = torch.Generator()


class Net(nn.Module):
    """Multiplies the channels with numbers that `draw` draws."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.keep()

    def keep(self):
        self.generator = torch.Generator().manual_seed(3)

    def draw(self, x):
        return torch.rand(x.shape[1], generator=self.generator, dtype=x.dtype)

    def forward(self, x):
        x = self.conv(x)
        drawn = torch.as_tensor(self.draw(x), dtype=x.dtype).reshape(-1, 1, 1)
        return self.head((x * drawn).mean((2, 3)))


class OfFixedSize(Net):
    def draw(self, x):
        return torch.rand(4, generator=self.generator)


class InPlace(Net):
    def draw(self, x):
        return torch.empty(x.shape[1]).bernoulli_(0.5, generator=self.generator)


class OfNumpy(Net):
    def keep(self):
        self.generator = numpy.random.default_rng(3)

    def draw(self, x):
        return torch.from_numpy(self.generator.random(x.shape[1]))


class OldOfNumpy(Net):
    def keep(self):
        self.generator = numpy.random.RandomState(3)

    def draw(self, x):
        return float(self.generator.rand())


class OfPython(Net):
    def keep(self):
        self.generator = random.Random(3)

    def draw(self, x):
        return self.generator.random()


class InCollections(Net):
    def keep(self):
        self.all = {"drop": [torch.Generator().manual_seed(3)]}

    def draw(self, x):
        return torch.rand(x.shape[1], generator=self.all["drop"][0])


class Holder:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)


class InAnObject(Net):
    def keep(self):
        self.holder = Holder()

    def draw(self, x):
        return torch.rand(x.shape[1], generator=self.holder.generator)


class InAModule(Net):
    def keep(self):
        self.inner = Draws()

    def draw(self, x):
        return self.inner(x[0, :, 0, 0])


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return torch.rand(x.shape, generator=self.generator)


class OfTheFile(Net):
    def keep(self):
        GLOBAL.manual_seed(3)

    def draw(self, x):
        return torch.rand(x.shape[1], generator=GLOBAL)


class OfTheClass(Net):
    generator = torch.Generator()

    def keep(self):
        self.generator.manual_seed(3)


NETS = [
    Net,
    OfFixedSize,
    InPlace,
    OfNumpy,
    OldOfNumpy,
    OfPython,
    InCollections,
    InAnObject,
    InAModule,
    OfTheFile,
    OfTheClass,
]


def compiled(model, settings):
    x = images(dtype=torch.float64)
    traced = compare_with_model(trace_model(model, (x,)), model, (x,))
    plan = resolve_recipe(loads(RECIPE.format(settings=settings)), traced, steps_per_epoch=10)
    return compile_plan(plan, traced)


def forwards(net, model, masks, x, shared):
    """What plain copies give in two steps: one for both paths, or one that begins anew for each."""

    def begin():
        plain = net().double()  # its generator begins anew
        plain.load_state_dict(model.state_dict())
        return plain

    weights = {"dense": model.conv.weight.detach()}
    weights = {"sparse": weights["dense"] * masks["conv.weight"], **weights}

    def call(plain, path):
        plain.conv.weight.data.copy_(weights[path])
        return plain(x).detach()

    if shared:
        return {path: [call(own, path) for own in [begin()] * 2] for path in weights}
    plain = begin()
    steps = [{path: call(plain, path) for path in weights} for _ in range(2)]
    return {path: [step[path] for step in steps] for path in weights}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shared", [True, False])
def test_paths_draw_from_a_kept_generator_as_two_plain_forwards_do(net, shared):
    torch.manual_seed(0)
    model, x = net().double().train(), images(dtype=torch.float64)
    dual = compiled(model, "{ random = shared }" if shared else "").train()
    dual.begin_step(0)
    found = [dual(x) for _ in range(2)]
    wanted = forwards(net, model, dual.masks, x, shared)
    for path, steps in wanted.items():
        for step, output in enumerate(steps):
            torch.testing.assert_close(found[step][path], output, rtol=1e-12, atol=0)


@pytest.mark.parametrize("net", NETS)
def test_compiling_draws_nothing_from_a_kept_generator(net):
    model = net().double().train()
    compiled(model, "{ random = shared }")
    x = images(dtype=torch.float64)
    after = model(x)
    fresh = net().double().train()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, fresh(x))


def test_the_plan_says_that_a_module_draws_from_a_generator_of_its_own():
    plan = compiled(InAModule().double(), "").plan
    reasons = {entry.module: entry.reason for entry in plan.opaque}
    assert reasons == {"inner": "it draws from a random number generator of its own"}


def test_generators_are_found_once_and_not_in_libraries():
    model = nn.Sequential(Net(), InCollections())
    model[0].library, model[1].again = numpy, model[0].generator
    model[0].setting = object()
    assert len(kept_generators(model)) == 2
