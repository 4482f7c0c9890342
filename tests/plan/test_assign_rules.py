"""Which rule owns a layer: the last one that matches."""

import pytest
from support.resolving import MIX, TRAIN, Net, codes_of, plan_of, resolve
from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import load
from dcil_dsl.model import trace_model
from dcil_dsl.plan.resolve import resolve_recipe


def rules_of(plan):
    """{module: the line of the rule that claims it}; the first statement is on line 2."""
    return {layer.module: layer.rule and int(layer.rule.split(":")[1]) for layer in plan.layers}


def test_the_last_rule_that_matches_a_layer_wins():
    plan = plan_of('prune Conv2d to 90%\nprune "layer1" to 50%\nkeep first Conv2d')
    assert rules_of(plan) == {
        "stem": 4,
        "layer1.0.conv1": 3,
        "layer1.0.conv2": 3,
        "layer1.1.conv1": 3,
        "layer1.1.conv2": 3,
        "layer2.0.conv1": 2,
        "layer2.0.conv2": 2,
        "head": None,
    }
    sizes = [(group.rule, len(group.parameters)) for group in plan.groups]
    assert sizes == [("x.prune:2", 2), ("x.prune:3", 4)]
    assert [layer.group for layer in plan.layers] == [None, 1, 1, 1, 1, 0, 0, None]


def test_layers_stand_in_execution_order_and_groups_in_that_of_their_rules():
    plan = plan_of("prune Linear to 50%\nprune Conv2d to 90%")
    assert [layer.module for layer in plan.layers][::7] == ["stem", "head"]
    assert plan.groups[0].parameters == ("head.weight",)
    assert plan.groups[1].parameters[:2] == ("stem.weight", "layer1.0.conv1.weight")


def test_a_rule_without_effect_is_warned_about_with_the_rules_that_took_its_layers():
    plan, (warning,) = resolve('prune "layer1" to 50%\nprune Conv2d to 90%')
    assert plan is not None and len(plan.groups) == 1
    assert (warning.code, warning.span.line) == ("W303", 2)
    assert warning.label == "later rules match all of its 4 layers"
    assert [label.span.line for label in warning.others] == [3]


def test_a_rule_that_keeps_one_of_its_layers_has_an_effect():
    assert codes_of('prune Conv2d to 90%\nkeep "layer1", "layer2"') == []
    assert codes_of('prune Conv2d to 90%\nkeep "layer1", "layer2", "stem"') == ["W303"]


def test_layers_tied_to_one_weight_are_claimed_together_by_the_last_rule_for_any():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    plan = plan_of('prune "0" to 90%\nprune "3" to 90%\nprune "2" to 50%', model)
    assert [layer.parameter for layer in plan.layers] == ["0.weight", "3.weight"]
    assert [(g.sparsity, g.parameters) for g in plan.groups] == [
        (0.9, ("3.weight",)),
        (0.5, ("0.weight",)),
    ]


def test_what_has_no_weight_to_prune_is_reported_by_its_types():
    _, (error,) = resolve("prune BatchNorm2d, ReLU to 90%")
    assert error.code == "E302"
    assert error.message == "nothing here can be pruned: 6 layers of type BatchNorm2d, ReLU"


def test_a_container_is_pruned_for_what_in_it_can_be():
    plan = plan_of('prune "layer2" to 90%')
    assert plan.groups[0].parameters == ("layer2.0.conv1.weight", "layer2.0.conv2.weight")


@pytest.mark.parametrize("rule", ["Conv2d", '"**"', '"layer1.0.conv1"'])
def test_a_weight_that_is_made_of_others_is_an_error_unless_it_is_kept(rule):
    model = Net()
    nn.utils.parametrizations.weight_norm(model.layer1[0].conv1)
    _, (error,) = resolve(f"prune {rule} to 90%", model)
    assert error.code == "E402" and error.message.startswith("`layer1.0.conv1` (Parametrized")
    assert error.help == (
        'exclude it with `except "layer1.0.conv1"` in this rule or `keep "layer1.0.conv1"` below it'
    )
    if rule != '"layer1.0.conv1"':
        plan = plan_of(f'prune {rule} except "layer1.0.conv1" to 90%', model)
        assert "layer1.0.conv1.weight" not in plan.groups[0].parameters
        plan = plan_of(f'prune {rule} to 90%\nkeep "layer1.0.conv1"', model)
        assert "layer1.0.conv1.weight" not in plan.groups[0].parameters


def test_a_rule_that_is_inherited_may_be_replaced_as_a_whole(tmp_path):
    (tmp_path / "parent.prune").write_text("language 1\nprune Conv2d to 90%\n" + MIX + TRAIN)
    child = tmp_path / "child.prune"

    def warned_about(rules):
        child.write_text(f'language 1\nextends "parent.prune"\n{rules}\n')
        found = Diagnostics()
        resolve_recipe(load(child), trace_model(Net()), 10, found)
        return [(d.code, d.span.line) for d in found.warnings]

    assert warned_about("prune Conv2d to erk(80%)") == []
    assert warned_about('prune "layer1" to 50%\nprune Conv2d to 80%') == [("W303", 3)]
