"""The whole Plan: pinned as it prints, and the same through JSON."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from support import golden
from support.resolving import MIX, Net, plan_of, resolve
from torch import nn

from dcil_dsl.lang import load, loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.show import show_plan
from dcil_dsl.zoo import build_model

RECIPES = Path(__file__).parents[2] / "recipes"
MODELS = {
    "quickstart": "torchvision:resnet18",
    "resnet20_fashion_dcil97": "dcil:resnet20",
    "resnet32_cifar10_dcil90": "dcil:resnet32",
    "resnet32_cifar10_dcil95": "dcil:resnet32",
    "resnet50": "torchvision:resnet50",
}


def plan_of_recipe(name):
    # The closed text, so that a comment in the file moves no line that the plan names.
    recipe = loads(load(RECIPES / f"{name}.prune").text, f"{name}.prune")
    size = recipe.data.image_size or 32
    with torch.device("meta"):  # a plan reads no weight, so none is drawn
        model = build_model(MODELS[name], recipe.model.classes, dict(recipe.model.options))
    example = torch.empty(1, recipe.data.channels, size, size)
    traced = trace_model(model.to_empty(device="cpu"), (example,))
    return resolve_recipe(recipe, traced, steps_per_epoch=391)


def test_every_recipe_is_tested_here():
    assert sorted(MODELS) == sorted(path.stem for path in RECIPES.glob("*.prune"))


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_goes_to_json_and_back_unchanged(name):
    plan = plan_of_recipe(name)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


@pytest.mark.parametrize("name", ["resnet32_cifar10_dcil90", "resnet20_fashion_dcil97"])
def test_the_plan_prints_as_it_did(name, request):
    golden.check(request, f"plan/{name}", show_plan(plan_of_recipe(name)))


def test_the_authors_setting_is_what_the_paper_prunes():
    """463,792 weights in 33 convolutions, ramp to epoch 225 in steps of an epoch, every 16."""
    plan = plan_of_recipe("resnet32_cifar10_dcil90")
    (group,) = plan.groups
    assert (sum(group.num_weights), group.sparsity, group.refresh) == (463_792, 0.9, 16)
    assert (group.schedule.reached, group.schedule.grid.step) == (225 * 391, 391)
    assert (plan.num_steps, len(plan.layers)) == (300 * 391, 34)
    assert {entry.module for entry in plan.privates if entry.init == "fresh"} == {"fc"}


def test_the_95_percent_recipe_differs_from_the_90_percent_one_in_its_target_alone():
    ninety, more = (plan_of_recipe(f"resnet32_cifar10_dcil{n}") for n in (90, 95))
    assert (ninety.groups[0].sparsity, more.groups[0].sparsity) == (0.9, 0.95)
    skip = {"recipe", "groups", "layers", "expect"}
    assert ninety.model_dump(exclude=skip) == more.model_dump(exclude=skip)


def test_a_plan_of_another_format_or_with_an_unknown_field_is_refused():
    text = plan_of("prune Conv2d to 90%").to_json()
    others = (text.replace('"format": 2', f'"format": {other}') for other in (0, 1, 3))
    for wrong in (*others, text.replace("{", '{"more": 1,', 1)):
        with pytest.raises(ValidationError):
            Plan.from_json(wrong)


# -- private modules -------------------------------------------------------------------------


def privates(statements, model=None):
    plan = plan_of("prune Conv2d to 90%", model, mix=MIX.replace("loss", f"{statements}\nloss", 1))
    return [(entry.module, entry.init) for entry in plan.privates]


def test_private_modules_stand_in_execution_order_with_their_start():
    assert privates("private last Linear { init = fresh }  private BatchNorm2d") == [
        ("layer1.0.norm", "copy"),
        ("layer1.1.norm", "copy"),
        ("layer2.0.norm", "copy"),
        ("head", "fresh"),
    ]


def test_of_two_statements_about_a_module_the_last_decides_how_its_twins_start():
    text = 'private BatchNorm2d { init = fresh }  private "layer1.1.norm"'
    assert [init for _, init in privates(text)] == ["fresh", "copy", "fresh"]


def test_what_has_no_state_in_a_selection_is_left_out_of_it():
    assert privates('private "layer2.0.norm", ReLU') == [("layer2.0.norm", "copy")]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


@pytest.mark.parametrize(
    "private, code, message",
    [
        ("Conv2d", "E303", "`stem` is pruned and private"),
        ("ReLU", "E308", "these modules have no weights or statistics to be private: ReLU"),
        (
            "Odd { init = fresh }",
            "E308",
            "`odd` (Odd) cannot start fresh: no `reset_parameters`",
        ),
        ('"head"', "E308", "`head` cannot be private: it shares a weight with `again`"),
    ],
)
def test_what_cannot_be_private_is_reported(private, code, message):
    class Bigger(Net):
        def __init__(self):
            super().__init__()
            self.odd, self.again = Odd(), nn.Linear(8, 10)
            self.again.weight = self.head.weight

        def forward(self, x):
            x = self.odd(super().forward(x))
            return self.again(x[:, :8])

    mix = MIX.replace("loss", f"private {private}\nloss", 1)
    _, errors = resolve("prune Conv2d to 90%", Bigger(), mix=mix)
    assert (errors[0].code, errors[0].message) == (code, message)
