"""What the printed plan says of modules that the tracer kept opaque and of those out of reach."""

import pytest
from support.resolving import plan_of
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dcil_dsl.plan.facts import plan_and_facts_json
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.show import show_plan
from dcil_dsl.plan.text import Page


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.other(x)


class Net(nn.Module):
    """A traced layer, a module that decides by values, a weight made of others, an idle layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.branch = Branch()
        self.normed = weight_norm(nn.Linear(4, 4))
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        return self.normed(self.branch(self.stem(x)))


@pytest.fixture(scope="module")
def plan():
    return plan_of('prune Linear to 50%\nkeep "normed"', Net())


def test_what_was_kept_whole_is_reported_with_its_reason_and_its_layers_are_marked(plan):
    lines = show_plan(plan).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("kept opaque by the tracer"))
    assert "1 module, with 2 layers of the above inside" in lines[start]
    assert lines[start + 1].startswith("  branch (Branch): ")
    marked = [line.split()[0] for line in lines if line.endswith("50%, whole")]
    assert marked == ["branch.one", "branch.other"]


def test_what_no_rule_can_prune_is_reported_with_its_reason(plan):
    text = " ".join(show_plan(plan).split())
    assert "normed (ParametrizedLinear): its weight is made of other parameters" in text
    assert "idle (Linear): the forward never uses it" in text


def test_opaque_modules_and_unprunable_weights_are_in_the_json(plan):
    read = Plan.from_json(plan_and_facts_json(plan))
    assert [entry.module for entry in read.opaque] == ["branch"]
    assert [entry.module for entry in read.out_of_reach] == ["normed", "idle"]


def test_many_modules_with_one_reason_are_one_line_and_fit_the_page(plan):
    entry = plan.opaque[0]
    many = tuple(entry.model_copy(update={"module": f"blocks.{i}.branch"}) for i in range(40))
    text = show_plan(plan.model_copy(update={"opaque": many}), Page(80))
    assert "blocks.0.branch to blocks.39.branch, 40 modules (Branch)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_of_a_model_that_traces_says_nothing_of_it():
    text = show_plan(plan_of("prune Linear to 50%", nn.Sequential(nn.Linear(4, 4))))
    assert "opaque" not in text and "reach" not in text
