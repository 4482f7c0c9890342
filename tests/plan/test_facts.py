"""What follows from a plan by counting, against the hand."""

import json

from support.resolving import plan_of
from torch import nn

from dcil_dsl.plan.facts import count_facts, kept_at, plan_and_facts_json
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import is_refresh, num_refreshes

RULES = """
prune "layer1" to global(80%) { schedule = cubic(0ep..5ep) refresh = 7 steps freeze = 8ep }
prune "layer2" to 50%
keep  "layer2.0.conv2"
"""


def test_layers_tell_what_is_left_of_them_where_their_budget_is_their_own():
    facts = count_facts(plan_of(RULES))
    assert {fact.parameter: fact.num_kept for fact in facts.layers} == {
        "stem.weight": 216,
        "layer1.0.conv1.weight": None,
        "layer1.0.conv2.weight": None,
        "layer1.1.conv1.weight": None,
        "layer1.1.conv2.weight": None,
        "layer2.0.conv1.weight": 72,
        "layer2.0.conv2.weight": 192,
        "head.weight": 80,
    }
    assert facts.layers[5].sparsity == 0.5 and facts.layers[0].sparsity == 0.0


def test_groups_tell_their_budget_and_their_moments():
    """layer1: 2 (8*8*9 + 8*8*3) weights = 1,536; at 80% 307 of them."""
    group = count_facts(plan_of(RULES)).groups[0]
    assert (group.counts, group.budget, group.kept) == ("weights", 1536, 307)
    assert (group.reached, group.last_refresh) == (50, 80)
    assert group.curve[0] == (0, 0.0) and group.curve[-1] == (99, 0.8)


def test_masks_take_a_byte_a_prunable_weight_and_a_bit_when_packed():
    facts = count_facts(plan_of(RULES))
    assert (facts.num_weights, facts.num_prunable) == (2168, 1680)
    assert (facts.mask_bytes, facts.packed_mask_bytes) == (1680, 210)


def test_scores_that_are_kept_between_steps_take_four_bytes_a_weight():
    assert count_facts(plan_of(RULES)).score_bytes == 0
    averaged = RULES.replace("refresh", "score = magnitude(average=0.9) refresh", 1)
    assert count_facts(plan_of(averaged)).score_bytes == 4 * 1536


def test_refreshes_are_counted_as_they_would_be_asked_for():
    for group in plan_of(RULES).groups:
        for num_steps in (0, 1, 49, 50, 51, 80, 81, 100):
            asked = sum(is_refresh(group, step) for step in range(num_steps))
            assert num_refreshes(group, num_steps) == asked


def test_what_is_kept_early_in_a_ramp_is_everything():
    group = plan_of('prune "layer1" to 80% { schedule = cubic(0ep..5ep) }').groups[0]
    assert kept_at(group, 0)["layer1.0.conv1.weight"] == 576


def test_phases_and_the_run_cost_as_many_dense_steps_as_paths_run():
    facts = count_facts(plan_of(RULES))
    phases = [(phase.start, phase.stop, phase.cost) for phase in facts.phases]
    assert phases == [(0, 100, 2.0)] and facts.training_cost == 2.0


def test_json_with_facts_is_read_back_as_the_plan():
    plan = plan_of(RULES)
    text = plan_and_facts_json(plan)
    assert Plan.from_json(text) == plan
    assert set(json.loads(text)) == set(json.loads(plan.to_json())) | {"facts"}


def test_a_layer_inside_a_private_module_is_reported_to_be_private():
    from support.resolving import MIX

    mix = MIX.replace("  deploy", '  private "head"\n  deploy')
    facts = count_facts(plan_of("prune Conv2d to 50%", mix=mix))
    assert [fact.parameter for fact in facts.layers if fact.private] == ["head.weight"]


def test_a_layer_of_no_weights_is_in_the_plan_as_any_other():
    layers = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(3, 4))
    facts = count_facts(plan_of("prune Linear to 50%", layers))
    assert [layer.num_kept for layer in facts.layers] == [0, 0, 6]
    facts = count_facts(plan_of("prune last Linear to 50%", layers))
    assert [layer.sparsity for layer in facts.layers] == [0.0, 0.0, 0.5]
