"""`below`: what scores less than a limit is pruned, and how much that is, is a result."""

import json

import pytest
import torch
from support.resolving import MIX, TRAIN, Net, codes_of, plan_of

import dcil_dsl as dcil
from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.exporting.artefact import promises_at
from dcil_dsl.exporting.verify import show_verdict, verify_tensors
from dcil_dsl.plan.facts import plan_and_facts_json
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import limit_at
from dcil_dsl.plan.show import show_plan
from dcil_dsl.training.sparsity import SparsityError, check_sparsity

LAYERS = "layer1.0.conv1.weight", "layer1.0.conv2.weight"


def group_of(more="", target="below(0.25)"):
    plan = plan_of(f'prune "layer1.0.*" to {target} {{ {more} }}')
    (group,) = Plan.from_json(plan.to_json()).groups
    assert group.parameters == LAYERS
    return group


def drawn(group, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [Net().get_parameter(name).shape for name in group.parameters]
    return [torch.rand(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def test_exactly_the_scores_below_the_limit_are_pruned():
    group = group_of()
    scores = drawn(group)
    scores[0][0, 0, 0, 0] = 0.25
    for mask, score in zip(make_masks(group, scores, 0), scores, strict=True):
        assert mask.flatten().tolist() == [x >= 0.25 for x in score.flatten().tolist()]


def test_the_layer_keeps_its_floor_and_a_score_that_is_not_a_number():
    group = group_of("floor = 10%", "below(2)")
    scores = drawn(group)
    masks = make_masks(group, scores, 0)
    for mask, score in zip(masks, scores, strict=True):
        highest = score.flatten().argsort(descending=True)[: -(-score.numel() // 10)]
        assert sorted(highest.tolist()) == mask.flatten().nonzero().flatten().tolist()
    scores[0].fill_(torch.nan)
    assert make_masks(group, scores, 0)[0].all()


def test_each_filter_keeps_its_floor():
    group = group_of("filter_floor = 2", "below(2)")
    assert all((m.flatten(1).sum(1) == 2).all() for m in make_masks(group, drawn(group), 0))


def test_filters_go_whose_mean_score_is_below_the_limit():
    group = group_of(target="below(0.5, granularity=filter(ties=none))")
    scores = drawn(group)
    for mask, score in zip(make_masks(group, scores, 0), scores, strict=True):
        rows = [sum(f.flatten().tolist()) / f.numel() >= 0.5 for f in score]
        assert mask.flatten(1).any(1).tolist() == mask.flatten(1).all(1).tolist() == rows


@pytest.mark.parametrize(
    "schedule, limits",
    [
        ("constant()", [0.25, 0.25, 0.25]),
        ("once(at=2ep)", [0.0, 0.25, 0.25]),
        ("linear(0ep..4ep)", [0.0, 0.125, 0.25]),
        ("linear(0ep..4ep, initial=0%)", [0.0, 0.125, 0.25]),
        ("cubic(0ep..4ep)", [0.0, 0.25 * 7 / 8, 0.25]),
    ],
)
def test_a_schedule_raises_the_limit_from_zero(schedule, limits):
    group = group_of(f"schedule = {schedule}")
    assert [limit_at(group, step) for step in (0, 20, 40)] == pytest.approx(limits)
    masks = make_masks(group, [x - 0.5 for x in drawn(group)], 0)
    assert all(mask.all() for mask in masks) == (limits[0] == 0)


def test_no_share_is_asked_for_and_the_measured_one_is_told():
    plan = plan_of("prune Conv2d to below(0.05)")
    dual = dcil.compile(plan, Net())
    dual.refresh(0)
    found = check_sparsity(dual, 0)
    masks = dual.masks.values()
    measured = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert 0.1 < measured < 0.9
    assert found.measured == pytest.approx(measured) == found.asked
    assert found.rules[0].is_result
    dual.masks["stem.weight"].fill_(False)
    with pytest.raises(SparsityError, match="stem.weight: 0 kept, 1 to 216 allowed"):
        check_sparsity(dual, 0)


def test_verify_says_that_a_threshold_decides_and_finds_revived_weights():
    plan = plan_of('prune "stem" to below(0.05)')
    promises = promises_at(plan, 20)
    weight = torch.zeros(8, 3, 3, 3)
    weight[:2] = 1.0
    verdict = verify_tensors({"stem.weight": weight}, promises)
    assert verdict.holds and verdict.sparsity == 0.75 and not verdict.notes
    assert "no share is asked for, a threshold decides; measured 75%" in show_verdict(verdict)
    masks = {"stem.weight": torch.zeros(8, 3, 3, 3, dtype=torch.bool)}
    assert not verify_tensors({"stem.weight": weight}, promises, masks).holds


def test_the_plan_says_the_limit_and_counts_nothing_it_cannot_know():
    plan = plan_of("prune Conv2d to below(0.05) { schedule = linear(0ep..4ep) }")
    text = show_plan(plan)
    assert "what scores below 0.05, of " in text and "how much that is, is a result" in text
    assert "to the limit 0.05 at step 40" in text
    (facts,) = json.loads(plan_and_facts_json(plan))["facts"]["groups"]
    assert facts["kept"] is None and facts["sparsity"] is None and facts["curve"] == []


def test_training_and_resuming_end_with_the_same_bits(tmp_path):
    from support.tiny_run import tiny_plan, tiny_train

    from dcil_dsl.words.targets import Below

    plan = tiny_plan(group={"target": Below(threshold=0.02), "floors": (1, 1)})
    result, straight, _ = tiny_train(tmp_path / "straight", plan)
    assert result.rules[0].is_result and 0 < result.sparsity_measured < 1
    tiny_train(tmp_path / "cut", plan, max_steps=7)
    _, again, _ = tiny_train(tmp_path / "cut", plan, resume=True)
    pairs = zip(straight.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "more",
    [
        "ceiling = 50%",
        "reserve = 10%",
        "regrow = random(30%)",
        "before = uniform(40%, granularity=filter)",
        "schedule = exponential(0ep..4ep)",
        "schedule = staged(at=[1ep, 2ep], stages=[0%])",
    ],
)
def test_what_needs_a_share_is_an_error_without_a_model(more):
    with pytest.raises(dcil.RecipeError, match="E235"):
        dcil.loads(f"language 1\nprune Conv2d to below(0.1) {{ {more} }}\n{MIX}\n{TRAIN}")


def test_a_limit_is_above_zero():
    with pytest.raises(dcil.RecipeError, match="E205"):
        dcil.loads(f"language 1\nprune Conv2d to below(0)\n{MIX}\n{TRAIN}")
    assert codes_of("prune Conv2d to below(0.1) { schedule = once(at=10ep) }") == ["E305"]
