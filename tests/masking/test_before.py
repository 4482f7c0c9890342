"""Whole units go first, then single weights of what they leave: both are counted and proved."""

from fractions import Fraction
from math import floor

import pytest
import torch
from support.resolving import MIX, TRAIN, Net, codes_of, plan_of

import dcil_dsl as dcil
from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.exporting.artefact import promises_at
from dcil_dsl.exporting.verify import show_verdict, verify_tensors
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import is_refresh, keeps_at, num_refreshes, reached_at, sparsity_at
from dcil_dsl.plan.show import show_plan
from dcil_dsl.training.sparsity import SparsityError, check_sparsity

FIRST = "before = uniform(40%, granularity=filter(ties=none))"


def plan_with(target, more="", layers='"layer1.**"'):
    return plan_of(f"prune {layers} to {target} {{ {FIRST} {more} }}")


def plainly(scores, filters, weights, one_budget):
    """Both choices as the documentation states them, weight by weight, in exact fractions."""
    left = []
    for name, score in scores.items():
        means = sorted(
            (-sum(map(Fraction, f.flatten().tolist())) / f.numel(), i) for i, f in enumerate(score)
        )
        keep = {i for _, i in means[: floor(len(score) * (1 - Fraction(filters)))]}
        for place in torch.ones_like(score).nonzero().tolist():
            if place[0] in keep:
                left.append((name, tuple(place), float(score[tuple(place)])))
    kept = set()
    for some in [left] if one_budget else [[x for x in left if x[0] == n] for n in scores]:
        order = sorted(range(len(some)), key=lambda i: (-some[i][2], i))
        first = [next(i for i in order if some[i][0] == name) for name in {x[0] for x in some}]
        order = first + [i for i in order if i not in first]  # the floor: one weight per layer
        kept |= {some[i][:2] for i in order[: floor(len(some) * (1 - Fraction(weights)))]}
    return kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("target, one_budget", [("global(90%)", True), ("75%", False)])
def test_the_masks_are_those_of_both_choices_one_after_the_other(target, one_budget, levels, seed):
    (group,) = plan_with(target, "floor = 0%").groups
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: Net().get_parameter(name).shape for name in group.parameters}
    scores = {
        name: torch.randint(1, levels, shape, generator=draw).double()
        for name, shape in shapes.items()
    }
    masks = make_masks(group, [scores[name] for name in group.parameters], 50)
    found = {
        (name, tuple(place))
        for name, mask in zip(group.parameters, masks, strict=True)
        for place in mask.nonzero().tolist()
    }
    share = Fraction(9, 10) if one_budget else Fraction(3, 4)
    assert found == plainly(scores, Fraction(4, 10), share, one_budget)


def test_the_plan_counts_what_both_leave():
    plan = plan_with("global(90%)")
    (group,) = Plan.from_json(plan.to_json()).groups
    sizes = (576, 192, 576, 192)
    assert group.num_weights == sizes
    left = [size // 8 * 4 for size in sizes]  # of eight filters 4.8 stay
    assert keeps_at(group, 0) == (sum(left) // 10,)
    assert keeps_at(group.before, 0) == (4, 4, 4, 4)
    assert sparsity_at(group, 0) == pytest.approx(1 - 0.1 * sum(left) / sum(sizes))
    text = show_plan(plan)
    assert "first 40% of 32 filters in 4 layers, one budget each; 16 kept at the end" in text
    assert "95% of 1,536 weights in 4 layers, one budget for all; 76 kept at the end" in text


def test_each_has_its_time_and_masks_change_when_either_is_reached():
    times = "before_schedule = once(at=7 steps)  schedule = linear(20 steps..43 steps)"
    (group,) = plan_with("75%", times).groups
    assert [is_refresh(group, step) for step in (6, 7, 16, 42, 43)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert reached_at(group) == 43 and num_refreshes(group, 100) == 7 + 2
    assert keeps_at(group, 6) == group.num_weights
    assert keeps_at(group, 7) == (288, 96, 288, 96)
    assert keeps_at(group, 43) == (72, 24, 72, 24)


def test_every_mask_of_a_run_has_the_counts_of_both_and_another_is_an_error():
    more = "before_schedule = linear(0ep..2ep)  schedule = cubic(1ep..5ep)"
    plan = plan_with("global(80%)", f"score = random(redraw=true) {more}", "Conv2d")
    dual = dcil.compile(plan, Net())
    for step in (0, 16, 20, 32, 50, 96):
        dual.refresh(step)
        found = check_sparsity(dual, step)
        assert found.asked == pytest.approx(found.measured, abs=1e-3)
    mask = dual.masks["layer1.0.conv1.weight"].flatten(1)
    rows = mask.any(1)
    assert int(rows.sum()) <= 4
    donor, gone = rows.nonzero()[0], (~rows).nonzero().flatten()
    places = mask[donor[0]].nonzero().flatten()
    mask[donor[0], places[0]] = False
    mask[gone[0], 0] = True
    while int(mask.any(1).sum()) <= 4:
        row = int(mask.sum(1).argmax())
        mask[row, mask[row].nonzero().flatten()[0]] = False
        gone = (~mask.any(1)).nonzero().flatten()
        mask[gone[0], 0] = True
    with pytest.raises(SparsityError, match="layer1.0.conv1.weight: weights in 5 filters kept"):
        check_sparsity(dual, 96)


def test_a_file_is_proved_in_filters_and_in_weights():
    plan = plan_of(f'prune "stem" to 75% {{ {FIRST} }}')
    (promise,) = promises_at(plan, 20)
    weight = torch.zeros(8, 27)
    weight[:4].view(-1)[: promise.keeps[0]] = 1.0
    assert promise.keeps == (27,) and promise.before.keeps == (4,)
    assert promise.asked == pytest.approx(0.875)

    def verdict(w):
        return verify_tensors({"stem.weight": w.view(8, 3, 3, 3)}, [promise])

    assert verdict(weight).holds
    assert "they lie in at most 4 of 8 filters" in show_verdict(verdict(weight))
    more = weight.clone()
    more[1] = 1.0
    assert verdict(more).faults == [
        "stem.weight: 54 weights are not zero, 27 allowed: 27 revived or never pruned"
    ]
    spread = torch.zeros(8, 27)
    spread[:5, :5] = 1.0
    assert verdict(spread).faults == ["stem.weight: 5 filters are not zero, 4 of 8 allowed"]


def test_tied_filters_go_together_and_the_rest_is_of_what_they_leave():
    statements = """data digits { image_size = 16 }
    prune Conv2d to 90% { before = uniform(50%, granularity=filter) }"""
    recipe = dcil.loads(f"language 1\n{statements}\n{MIX}\n{TRAIN}")
    example = (torch.zeros(1, 3, 16, 16),)
    plan = dcil.resolve(recipe, Net(), steps_per_epoch=10, example_inputs=example)
    (group,) = plan.groups
    assert any(len(tie.parts) > 1 for tie in group.before.ties)
    dual = dcil.compile(plan, Net())
    dual.refresh(0)
    check_sparsity(dual, 0)
    halves = ("stem.weight", "layer1.0.conv2.weight")
    rows = [dual.masks[name].flatten(1).any(1) for name in halves]
    assert all(int(row.sum()) <= 4 for row in rows)


@pytest.mark.parametrize(
    "rule, code",
    [
        ("90% { before = uniform(40%) }", "E235"),
        ("90% { before = global(40%, granularity=filter) }", "E235"),
        ("90% { before = 2:4 }", "E206"),
        ("90% { before = uniform(0%, granularity=filter) }", "E205"),
        ("90% { before = uniform(100%, granularity=filter) }", "E205"),
        ("90% { before_schedule = once(at=1ep) }", "E211"),
        (f"2:4 {{ {FIRST} }}", "E235"),
        (f"90% {{ granularity = channel  {FIRST} }}", "E235"),
        (f"erk(90%) {{ {FIRST} }}", "E235"),
        (f"at_most(weights=9) {{ {FIRST} }}", "E235"),
        (f"90% {{ ceiling = 50%  {FIRST} }}", "E235"),
        (f"90% {{ filter_floor = 1  {FIRST} }}", "E235"),
        (f"90% {{ reserve = 1%  {FIRST} }}", "E235"),
        (f"90% {{ regrow = random(30%)  {FIRST} }}", "E235"),
        (f"90% {{ before_schedule = linear(0ep..1ep, initial=80%)  {FIRST} }}", "E214"),
    ],
)
def test_what_cannot_be_said_is_an_error_without_a_model(rule, code):
    with pytest.raises(dcil.RecipeError) as caught:
        dcil.loads(f"language 1\nprune Conv2d to {rule}\n{MIX}\n{TRAIN}")
    assert code in {d.code for d in caught.value.diagnostics}


def test_floors_and_times_are_checked_against_what_is_left():
    assert codes_of(f'prune "layer1.**" to 90% {{ floor = 40%  {FIRST} }}') == ["E304", "E304"]
    late = "before_schedule = once(at=10ep)"
    assert codes_of(f'prune "layer1.**" to 90% {{ {late}  {FIRST} }}') == ["E305"]
