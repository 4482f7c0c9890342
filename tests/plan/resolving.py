"""A recipe of a few statements, resolved for a small network.

In:   statements, a model, steps an epoch.
Out:  the Plan, or the diagnostics.
Not:  no test.
"""

from torch import nn

from dcil_dsl.diagnostics import Diagnostics, RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.resolve import resolve_recipe

MIX = """mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
"""
TRAIN = "train { epochs = 10ep  optimizer = sgd(lr=0.1) }\n"


class Block(nn.Module):
    def __init__(self, width, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, (1, 3), padding=(0, 1))
        self.act = nn.ReLU()

    def forward(self, x):
        return x + self.act(self.conv2(self.norm(self.conv1(x))))


class Net(nn.Module):
    """stem, layer1.0, layer1.1, layer2.0 (grouped), head; `head` is registered first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.layer2 = nn.Sequential(Block(8, groups=4))

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def resolve(statements, model=None, mix=MIX, train=TRAIN, steps=10):
    """(the Plan or None, every diagnostic of the model's stage)."""
    recipe = loads(f"language 1\n{statements}\n{mix}\n{train}", "x.prune")
    report = Diagnostics()
    try:
        return resolve_recipe(recipe, trace_model(model or Net()), steps, report), report.found
    except RecipeError as error:
        return None, error.diagnostics


def plan_of(statements, model=None, **more):
    """The Plan of statements without an error."""
    plan, found = resolve(statements, model, **more)
    assert plan is not None, found
    return plan


def codes_of(statements, model=None, **more):
    return [d.code for d in resolve(statements, model, **more)[1]]
