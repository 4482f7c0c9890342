"""What a forward puts aside in lists and dictionaries: each path has its own, as a model has."""

import copy

import pytest
import torch
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.plan.resolve import resolve_recipe

WIDTH = 6
RECIPE = """
language 1
prune Linear to 50%
mix {
  path sparse = masked
  path dense = full
  update kept by sparse  update pruned by dense
  loss cross_entropy(sparse)  loss cross_entropy(dense)
  deploy sparse
}
train { epochs = 2ep  optimizer = sgd(lr=0.01) }
"""


class Part(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.layer, self.head, self.heads = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), heads

    def forward(self, x):
        x = self.layer(x).relu()
        self.heads[0] = self.head(x)
        return x


class SharedList(nn.Module):
    """A part fills a list that the model reads, as in MONAI's DynUNet."""

    def __init__(self):
        super().__init__()
        self.heads = [torch.zeros(1)]
        self.part, self.last = Part(self.heads), nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.last(self.part(x)) + self.heads[0]


class ReadFirst(SharedList):
    """What the part has put aside is read in the next call."""

    def forward(self, x):
        before = self.heads[0]
        return self.last(self.part(x)) + before.detach()


class Nested(nn.Module):
    """A state in a list in a dictionary."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.memory = {"states": [torch.zeros(())], "calls": {"number": 0}}

    def forward(self, x):
        h = self.layer(x) + self.memory["states"][-1] * self.memory["calls"]["number"]
        self.memory["states"].append(h.detach().mean())
        self.memory["calls"]["number"] += 1
        return self.last(h)


class OfTuples(Nested):
    def __init__(self):
        super().__init__()
        self.memory = ({"states": [torch.zeros(())]}, {"number": 0})

    def forward(self, x):
        states, calls = self.memory[0]["states"], self.memory[1]
        h = self.layer(x) + states[-1] * calls["number"]
        states.append(h.detach().mean())
        calls["number"] += 1
        return self.last(h)


def plain(model, masks):
    """A copy of the model with zeros for the masked weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", [SharedList, ReadFirst, Nested, OfTuples])
def test_each_path_has_what_it_put_aside_over_several_calls(kind, training):
    torch.manual_seed(0)
    model = kind().double()
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    traced = compare_with_model(trace_model(model, x), model, x)
    dual = compile_plan(resolve_recipe(loads(RECIPE), traced, steps_per_epoch=10), traced)
    dual.begin_step(0)
    sides = {"sparse": plain(model, dual.masks), "dense": plain(model, {})}
    for module in (dual, *sides.values()):
        module.train(training)
    for _ in range(3):
        x = torch.randn(5, WIDTH, dtype=torch.float64)
        outputs = dual(x)
        for path, side in sides.items():
            torch.testing.assert_close(outputs[path], side(x))
        sum(output.sum() for output in outputs.values()).backward()
