"""A profile drawn, and its rules: they parse, resolve, and ask for what they say."""

import pytest
from support.resolving import Net, plan_of
from torch import nn

from dcil_dsl.extras.sensitivity.profile import LayerProfile, Profile
from dcil_dsl.extras.sensitivity.report import show_measured, show_profile, suggest_rules
from dcil_dsl.plan.facts import count_facts
from dcil_dsl.plan.text import Page


def measured(model, cost=lambda index: 0.01 * (index + 1)):
    """A profile of a network whose i-th layer costs more than the one before."""
    plan = plan_of("prune Conv2d to 10%" if not isinstance(model, nn.Identity) else "", model)
    levels = (0.5, 0.8, 0.9, 0.99)
    return Profile(
        model="file.py:Net",
        data="digits",
        weights="w.safetensors",
        num_batches=2,
        num_examples=64,
        levels=levels,
        loss=0.25,
        score=0.9,
        layers=tuple(
            LayerProfile(
                parameter=layer.parameter,
                module=layer.module,
                num_weights=layer.num_weights,
                losses=tuple(cost(i) * s / (1 - s) for s in levels),
                scores=tuple(-cost(i) * s for s in levels),
            )
            for i, layer in enumerate(plan.layers)
        ),
    )


@pytest.mark.parametrize("target", [0.3, 0.8, 0.9, 0.95])
def test_the_rules_are_of_the_language_and_take_away_what_they_say(target):
    rules = suggest_rules(measured(Net()), target)
    facts = count_facts(plan_of(rules, Net()))
    kept = sum(fact.num_kept for fact in facts.layers)
    assert target <= 1 - kept / facts.num_weights < target + 0.005


def test_the_layers_that_mind_least_lose_most():
    rules = suggest_rules(measured(Net()), 0.5)
    kept = {f.parameter: f.sparsity for f in count_facts(plan_of(rules, Net())).layers}
    assert kept["stem.weight"] > kept["layer1.1.conv1.weight"] >= kept["layer2.0.conv2.weight"]
    assert 'keep  "' in rules and rules.splitlines()[0].startswith("# 50% of 2,168 weights")


def test_shares_that_were_measured_are_written_as_such():
    rules = suggest_rules(measured(Net()), 0.8)
    shares = [line.rpartition(" to ")[2] for line in rules.splitlines()[1:] if " to " in line]
    assert len(set(shares) - {"50%", "80%", "90%"}) <= 1 < len(shares)


def test_a_module_with_layers_inside_has_its_rule_before_theirs():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attend = nn.Conv2d(3, 8, 1), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            x = self.stem(x).flatten(2).permute(2, 0, 1)
            return self.attend(x, x, x)[0]

    rules = suggest_rules(measured(Attend(), lambda i: (0.0, 5.0, 0.1)[i]), 0.5)
    shares = {f.parameter: f.sparsity for f in count_facts(plan_of(rules, Attend())).layers}
    assert shares["attend.in_proj_weight"] < shares["attend.out_proj.weight"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("unicode", [False, True])
def test_the_table_fits_its_page_and_leaves_out_levels_not_layers(width, unicode):
    profile = measured(Net())
    text = show_profile(profile, 0.9, Page(width, unicode))
    assert max(map(len, text.splitlines())) <= width
    assert sum(line.startswith(("stem", "layer", "head")) for line in text.splitlines()) >= 8
    assert " 90%" in text


def test_what_the_columns_are_is_said_in_sentences():
    text = show_profile(measured(Net()), 0.9)
    assert "by how much the loss rises when that share of the layer is zero" in text
    assert "the change of top-1 at 90%, in percentage points; bar: the rise of the loss at" in text


def test_the_most_sensitive_layer_has_the_longest_bar():
    lines = show_profile(measured(Net()), 0.9).splitlines()
    bars = {line.split()[0]: line.count("#") for line in lines if line}
    assert max(bars, key=bars.get) == "head" and 0 < bars["stem"] < bars["head"]


def test_a_target_beyond_what_was_measured_is_reported_and_no_rules_are_written():
    text = show_measured(measured(Net()), 0.995, None)
    assert "no rules for 99.5%: at the highest level that was measured 99.2% go" in text


def test_fresh_weights_are_said_to_be_fresh():
    fresh = measured(Net()).model_copy(update={"weights": ""})
    assert "weights: FRESH, not trained" in show_profile(fresh, 0.9)


def test_what_the_recipe_has_private_is_shown_and_in_no_rule():
    profile = measured(Net())
    first, *others = profile.layers
    layers = (first.model_copy(update={"private": True}), *others)
    private = profile.model_copy(update={"layers": layers})
    assert f"\n{first.module} " in show_profile(private, 0.9)
    assert f'"{first.module}"' in suggest_rules(profile, 0.9)
    assert f'"{first.module}"' not in suggest_rules(private, 0.9)


def test_where_every_layer_is_private_there_are_no_rules_and_it_is_said():
    profile = measured(Net())
    layers = tuple(layer.model_copy(update={"private": True}) for layer in profile.layers)
    text = show_measured(profile.model_copy(update={"layers": layers}), 0.9, None)
    assert text.endswith("no rules: each layer that was measured is private to the paths\n")


def test_the_names_column_is_as_wide_as_its_head():
    text = show_profile(measured(nn.Sequential(nn.Conv2d(3, 8, 3))), 0.9)
    assert any(line.startswith("layer  weights") for line in text.splitlines())
