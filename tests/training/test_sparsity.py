"""Masks are held against the plan in what its budgets count: units, costs, patterns, bounds."""

import pytest
import torch
from support.in_steps import cubic, one_budget
from support.tiny_run import tiny_dual, tiny_plan, tiny_train

from dcil_dsl.plan import plan as p
from dcil_dsl.training.sparsity import SparsityError, check_sparsity
from dcil_dsl.words.schedules import Constant
from dcil_dsl.words.targets import NM

ONCE = Constant()
FILTERS = dict(
    granularity="filter",
    of="units",
    target=one_budget(0.5),
    schedule=ONCE,
    cuts=(p.Cut(shape=(4, 9), units=(0,)), p.Cut(shape=(8, 36), units=(0,))),
)


def dual_of(**group):
    dual = tiny_dual(tiny_plan(group=group))
    dual.refresh(0)
    return dual


def test_what_was_asked_is_reported_in_filters_and_what_is_left_in_weights_too():
    dual = dual_of(**FILTERS)
    found = check_sparsity(dual, 0)
    assert (found.counts, found.asked, found.pruned) == ("filters", 0.5, 0.5)
    kept = [int(mask.flatten(1).all(1).sum()) for mask in dual.masks.values()]
    assert sum(kept) == 6
    assert found.num_kept == 9 * kept[0] + 36 * kept[1]
    assert found.measured == 1 - found.num_kept / 324


def test_a_filter_that_is_kept_in_part_is_an_error():
    dual = dual_of(**FILTERS)
    mask = dual.masks["conv2.weight"]
    mask[mask.flatten(1).any(1).nonzero()[0, 0], 0, 0, 0] = False
    with pytest.raises(SparsityError, match="conv2.weight: 1 weight of kept units is pruned"):
        check_sparsity(dual, 0)


def test_one_filter_too_many_or_too_few_is_an_error():
    dual = dual_of(**FILTERS)
    mask = dual.masks["conv1.weight"]
    mask.fill_(not mask.flatten(1).any(1).all())
    with pytest.raises(SparsityError, match="6 of 12 filters asked"):
        check_sparsity(dual, 0)


def test_a_budget_of_costs_may_leave_less_than_the_cheapest_unit_and_no_more():
    # 152.28: 152 of 324 kept
    costs = dict(FILTERS, of="weights", costs=(9, 36), target=one_budget(0.53))
    dual = dual_of(**costs)
    kept = [int(mask.flatten(1).all(1).sum()) for mask in dual.masks.values()]
    assert 152 - 9 < 9 * kept[0] + 36 * kept[1] <= 152
    check_sparsity(dual, 0)
    dual.masks["conv1.weight"].fill_(False)
    with pytest.raises(SparsityError, match="152 of 324 weights asked"):
        check_sparsity(dual, 0)


def test_the_layers_at_their_bounds_are_named():
    with torch.no_grad():
        dual = tiny_dual(tiny_plan(group=dict(FILTERS, floors=(1, 1), ceilings=(3, 8))))
        dual.get_parameter("conv1.weight").fill_(100.0)
        dual.refresh(0)
        assert check_sparsity(dual, 0).at_ceiling == ("conv1.weight",)
        dual.get_parameter("conv1.weight").fill_(1e-3)
        dual.refresh(0)
        assert check_sparsity(dual, 0).at_floor == ("conv1.weight",)


def test_layers_that_are_bound_together_are_named_as_the_recipe_names_them():
    bound = p.Bound(name="late", members=(1,), floor=5, ceiling=8)
    with torch.no_grad():
        dual = tiny_dual(tiny_plan(group=dict(FILTERS, bounds=(bound,))))
        dual.get_parameter("conv1.weight").fill_(100.0)
        dual.refresh(0)
        kept = [int(mask.flatten(1).any(1).sum()) for mask in dual.masks.values()]
        assert kept == [1, 5]  # six in all: without the bound all four of conv1
        assert check_sparsity(dual, 0).at_floor == ("conv1.weight", "within late")


def test_a_group_of_four_that_keeps_three_is_an_error_although_the_count_is_right():
    pattern = dict(
        target=NM(n=2, m=4),
        schedule=ONCE,
        parameters=("conv2.weight",),
        num_weights=(288,),
        floors=(1,),
        cuts=(p.Cut(shape=(8, 4, 9), units=(0, 2)),),
    )
    dual = dual_of(**pattern)
    assert check_sparsity(dual, 0).num_kept == 144
    mask = dual.masks["conv2.weight"]
    assert (mask.sum(1) == 2).all()
    mask[0, :, 0, 0] = mask.new_tensor([True, True, True, False])
    mask[0, :, 0, 1] = mask.new_tensor([True, False, False, False])
    with pytest.raises(SparsityError, match="2 groups of 4 weights do not keep 2"):
        check_sparsity(dual, 0)


def test_a_run_of_filters_reports_them_and_resumes_as_it_was(tmp_path):
    plan = tiny_plan(group=dict(FILTERS, schedule=cubic(0, 12)))
    straight, dual, run = tiny_train(tmp_path / "straight", plan)
    assert (straight.counts, straight.sparsity_counted) == ("filters", 0.5)
    assert "sparsity_counted" in run.metrics.read_text().splitlines()[-1]
    tiny_train(tmp_path / "cut", plan, max_steps=7)
    _, again, _ = tiny_train(tmp_path / "cut", plan, resume=True)
    same = (torch.equal(a, b) for a, b in zip(dual.parameters(), again.parameters(), strict=True))
    assert all(same)
