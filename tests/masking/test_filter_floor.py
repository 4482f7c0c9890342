"""Each filter keeps its floor, then the budget goes to the highest scores: entry by entry."""

import random

import pytest
import torch
from support.resolving import Net, codes_of, plan_of
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.exporting.artefact import promises_at
from dcil_dsl.exporting.verify import verify_tensors
from dcil_dsl.masking.select import keep_top
from dcil_dsl.masking.units import highest_of_units
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import Cut, Plan
from dcil_dsl.plan.schedule import keeps_at
from dcil_dsl.plan.show import show_plan
from dcil_dsl.training.sparsity import SparsityError, check_sparsity

MIX = "mix { path s = masked  update kept, pruned by s  loss cross_entropy(s)  deploy s }"


def plain(layers, axis, keep, least):
    """The rule as the documentation states it, in Python: {(layer, place)} of what stays."""
    entries = [
        (-float(w), i, place)
        for i, layer in enumerate(layers)
        for place, w in zip(_places(layer), layer.flatten(), strict=True)
    ]
    entries.sort()
    kept, of_filter = set(), {}
    for _, i, place in entries:
        filter = i, place[axis]
        if of_filter.get(filter, 0) < least:
            of_filter[filter] = of_filter.get(filter, 0) + 1
            kept.add((i, place))
    for _, i, place in entries:
        if len(kept) < keep:
            kept.add((i, place))
    return kept


def _places(tensor):
    return [tuple(place) for place in torch.ones_like(tensor).nonzero().tolist()]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("axis", [0, 1])
def test_filters_keep_their_floor_and_the_highest_of_the_rest_fill_the_budget(seed, axis):
    chance = random.Random(seed)
    shapes = [[chance.randint(1, 4) for _ in range(3)] for _ in range(chance.randint(1, 3))]
    levels = chance.choice([2, 10**6])
    draw = torch.Generator().manual_seed(seed)
    layers = [torch.randint(0, levels, s, generator=draw).double() for s in shapes]
    cuts = [Cut(shape=tuple(s), units=(axis,)) for s in shapes]
    least = min(chance.randint(1, 2), *(x.numel() // x.shape[axis] for x in layers))
    floors = [least * x.shape[axis] for x in layers]
    keep = chance.randint(sum(floors), sum(x.numel() for x in layers))
    always = [highest_of_units(x, cut, least) for x, cut in zip(layers, cuts, strict=True)]
    masks = keep_top(layers, keep, floors, always=always)
    found = {(i, tuple(p)) for i, mask in enumerate(masks) for p in mask.nonzero().tolist()}
    assert found == plain(layers, axis, keep, least)


def group_of(rule, more="", model=None):
    (group,) = plan_of(f"prune {rule} {{ {more} }}", model, mix=MIX).groups
    return group


def test_a_number_is_of_weights_and_a_percentage_is_rounded_up():
    by_number = group_of("Conv2d to global(80%)", "filter_floor = 3")
    assert {floor.least for floor in by_number.filter_floors} == {3}
    shares = group_of("Conv2d to global(80%)", "filter_floor = 10%").filter_floors
    sizes = [floor.cut.shape[-1] for floor in shares]
    assert [floor.least for floor in shares] == [-(-size // 10) for size in sizes]
    assert by_number.floors == tuple(3 * 8 for _ in by_number.parameters)


def test_a_filter_smaller_than_the_floor_keeps_all_of_its_weights():
    net = nn.Sequential(nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 4, 3))
    group = group_of("Conv2d to global(20%)", "filter_floor = 2", net)
    assert [floor.least for floor in group.filter_floors] == [1, 2]


def test_the_filters_of_a_transposed_convolution_are_its_second_axis():
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3))
    group = group_of("ConvTranspose2d to 90%", "filter_floor = 3", net)
    scores = [torch.rand(4, 6, 3, 3, dtype=torch.float64) * torch.arange(6).view(6, 1, 1)]
    (mask,) = make_masks(group, scores, 0)
    assert mask.sum() == keeps_at(group, 0)[0] == 21
    assert mask.sum((0, 2, 3)).min() == 3


def test_floors_of_filters_above_the_budget_are_an_error_at_their_line():
    assert codes_of("prune Conv2d to 95% { filter_floor = 4 }", mix=MIX) == ["E304"]
    assert codes_of("prune Conv2d to global(50%) { filter_floor = 60% }", mix=MIX) == ["E304"]


def test_every_mask_of_a_run_keeps_the_floor_and_one_that_does_not_is_an_error():
    more = "filter_floor = 2  score = random(redraw=true)  schedule = linear(0ep..5ep)"
    plan = plan_of(f"prune Conv2d to global(85%) {{ {more} }}", mix=MIX)
    dual = dcil.compile(plan, Net())
    for step in (0, 16, 32, 50):
        dual.refresh(step)
        check_sparsity(dual, step)
        assert all(m.flatten(1).sum(1).min() >= 2 for m in dual.masks.values())
    assert any(m.flatten(1).sum(1).min() == 2 for m in dual.masks.values())
    mask = dual.masks["stem.weight"].flatten(1)
    kept = int(mask[0].sum())
    mask[0] = False
    mask[1, (~mask[1]).nonzero().flatten()[:kept]] = True
    with pytest.raises(SparsityError, match="stem.weight: 1 of 8 filters keeps less than 2"):
        check_sparsity(dual, 50)


def test_a_file_with_an_empty_filter_is_a_fault_unless_kept_weights_are_zero():
    plan = plan_of('prune stem to 50% { filter_floor = 2 }\nlayers stem = "stem"', mix=MIX)
    plan = Plan.from_json(plan.to_json())
    (promise,) = promises_at(plan, 20)
    weight = torch.zeros(8, 27)
    weight[:, :13] = 1.0
    weight[:, 13][:4] = 1.0
    assert int((weight != 0).sum()) == promise.keeps[0] == 108
    good = {"stem.weight": weight.view(8, 3, 3, 3)}
    assert verify_tensors(good, [promise]).holds
    moved = weight.clone()
    moved[0], moved[1] = 0.0, 1.0
    verdict = verify_tensors({"stem.weight": moved.view(8, 3, 3, 3)}, [promise])
    assert verdict.faults == [
        "stem.weight: 1 of 8 filters keeps less than 2 weights that are not zero"
    ]
    gone = weight.clone()
    gone[0] = 0.0
    verdict = verify_tensors({"stem.weight": gone.view(8, 3, 3, 3)}, [promise])
    assert verdict.holds and "kept weights happen to be zero" in " ".join(verdict.notes)


def test_the_plan_says_the_floor_of_filters():
    plan = plan_of("prune Conv2d to global(80%) { filter_floor = 3 }", mix=MIX)
    assert "3 of each filter" in show_plan(plan)
    assert training_cost(plan) == 1.0
