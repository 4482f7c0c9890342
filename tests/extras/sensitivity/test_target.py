"""The target `sensitivity(...)`: shares by a measured profile, and profiles that do not fit."""

from pathlib import Path

import pytest
from support.resolving import MIX, TRAIN, Net, plan_of, resolve
from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.extras.sensitivity.profile import LayerProfile, Profile
from dcil_dsl.lang import load
from dcil_dsl.model import trace_model
from dcil_dsl.plan.facts import kept_at
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.schedule import keeps_at
from dcil_dsl.plan.show import show_plan

RECIPES = Path(__file__).parents[3] / "recipes"
RULE = 'prune Conv2d to sensitivity({}, profile="{}")'


class Two(nn.Sequential):
    """Two convolutions of 100 weights each."""

    def __init__(self):
        super().__init__(nn.Conv2d(10, 10, 1), nn.Conv2d(10, 10, 1))


def write_profile(path, curves, sizes=None, levels=(0.5, 0.9)):
    """curves: {module: loss increases}."""
    layers = tuple(
        LayerProfile(
            parameter=f"{module}.weight",
            module=module,
            num_weights=(sizes or {}).get(module, 100),
            losses=losses,
            scores=(0.0,) * len(losses),
        )
        for module, losses in curves.items()
    )
    profile = Profile(
        model="x:Two",
        data="digits",
        weights="w.pth",
        num_batches=1,
        num_examples=8,
        levels=levels,
        loss=1.0,
        score=0.5,
        layers=layers,
    )
    path.write_text(profile.to_json())
    return path


@pytest.fixture
def profile(tmp_path):
    """The first half of the first layer costs more than the second, which the hull evens out."""
    return write_profile(tmp_path / "p.json", {"0": (0.8, 1.0), "1": (0.1, 0.5)})


def test_each_layer_loses_what_the_curves_say_and_together_exactly_the_target(profile):
    """110 of 200 go. A weight of layer 1 costs 0.1 / 50 up to 50% and 0.4 / 40 up to 90%, one of
    layer 0, by its hull, 1.0 / 90: more than either, so the 20 that are left are its."""
    group = plan_of(RULE.format("55%", profile), Two()).groups[0]
    assert kept_at(group, 99) == {"0.weight": 80, "1.weight": 10}


def test_during_a_ramp_each_layer_has_reached_the_same_part_of_its_share(profile):
    rule = RULE.format("55%", profile) + " { schedule = linear(0ep..8ep) refresh = 1 step }"
    group = plan_of(rule, Two()).groups[0]
    assert keeps_at(group, 0) == (100, 100) and keeps_at(group, 40) == (90, 55)


def test_the_plan_tells_each_share_and_how_it_was_chosen(profile):
    text = show_plan(plan_of(RULE.format("55%", profile), Two()))
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "Conv2d", "10x10x1x1", "100", "-", ":2", "20%"] in rows
    assert "one budget each by measured sensitivity" in text


def test_the_path_of_a_profile_is_relative_to_the_file_that_names_it(tmp_path, profile):
    child = tmp_path / "sub" / "child.prune"
    child.parent.mkdir()
    parent = f"language 1\n{RULE.format('55%', 'p.json')}\n{MIX}{TRAIN}"
    (tmp_path / "parent.prune").write_text(parent)
    child.write_text('language 1\nextends "../parent.prune"\n')
    plan = resolve_recipe(load(child), trace_model(Two()), 10, Diagnostics())
    assert kept_at(plan.groups[0], 99)["0.weight"] == 80


def test_a_let_may_hold_the_target(tmp_path, profile):
    rules = 'let t = sensitivity(55%, profile="p.json")\nprune Conv2d to t'
    recipe = f"language 1\n{rules}\n{MIX}{TRAIN}"
    (tmp_path / "x.prune").write_text(recipe)
    plan = resolve_recipe(load(tmp_path / "x.prune"), trace_model(Two()), 10, Diagnostics())
    assert kept_at(plan.groups[0], 99)["1.weight"] == 10


def test_the_profile_among_the_recipes_fits_its_recipe():
    from dcil_dsl.zoo import build_model

    recipe = load(RECIPES / "allocation" / "sensitivity.prune")
    traced = trace_model(build_model("dcil:resnet20", 10))
    group = resolve_recipe(recipe, traced, 23, Diagnostics()).groups[0]
    assert sum(keeps_at(group, 183)) == 27_025  # 270,256 / 10, rounded down
    assert max(group.targets) == pytest.approx(0.99, abs=1e-4)
    assert group.parameters[group.targets.index(max(group.targets))] == "layer3.2.conv2.weight"


def refusal(rule, model=None):
    _, found = resolve(rule, model or Two())
    assert [one.code for one in found] == ["E318"]
    return found[0]


def test_a_profile_that_is_missing_is_reported_with_where_it_was_looked_for():
    wrong = refusal(RULE.format("55%", "nowhere/p.json"))
    assert "there is no such file" in wrong.message and "nowhere/p.json" in wrong.label
    assert wrong.span.text == 'sensitivity(55%, profile="nowhere/p.json")'


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_no_loss_that_could_be_shared_out(tmp_path, loss):
    path = write_profile(tmp_path / "p.json", {"0": (0.1, 0.2), "1": (0.1, loss)})
    wrong = refusal(RULE.format("55%", path))
    assert "the loss of 1.weight at 90% is not finite" in wrong.message


def test_a_profile_of_another_model_is_reported_by_layer(tmp_path):
    path = write_profile(tmp_path / "p.json", {"0": (0.1, 0.2)})
    assert "does not contain `1.weight`" in refusal(RULE.format("55%", path)).message
    assert "; 7 layers do not fit the profile" in refusal(RULE.format("55%", path), Net()).message
    path = write_profile(tmp_path / "p.json", {"0": (0.1, 0.2), "1": (0.1, 0.2)}, {"1": 64})
    wrong = refusal(RULE.format("55%", path))
    assert "the profile's `1.weight` has 64 weights, the model's 100" in wrong.message


def test_a_sparsity_that_was_not_measured_is_not_promised(profile):
    wrong = refusal(RULE.format("95%", profile))
    assert "the profile reaches 90%, not 95%" in wrong.message


def test_floors_bind_before_the_profile_does(profile):
    group = plan_of(RULE.format("55%", profile) + " { floor = 40% }", Two()).groups[0]
    assert kept_at(group, 99) == {"0.weight": 50, "1.weight": 40}
    plan, found = resolve(RULE.format("70%", profile) + " { floor = 40% }", Two())
    assert plan is None and [one.code for one in found] == ["E304"]
