"""A file holds a promise about filters, patterns or arithmetic only where every unit does."""

import pytest
import torch
from support.in_steps import each_layer, one_budget

from dcil_dsl.exporting.artefact import Promise
from dcil_dsl.exporting.verify import show_verdict, verify_tensors
from dcil_dsl.extras.sensitivity.target import Sensitivity
from dcil_dsl.plan.plan import Bound, Cut
from dcil_dsl.words.targets import NM, Erk
from dcil_dsl.words.units import Percent


def promise(**fields):
    """Two layers of four filters of three weights; half of the filters may be kept."""
    filters = Cut(shape=(4, 3), units=(0,))
    defaults = dict(
        rule="x.prune:4",
        target=one_budget(0.5),
        asked=0.5,
        parameters=("a", "b"),
        num_weights=(12, 12),
        keeps=(4,),
        of="units",
        granularity="filter",
        cuts=(filters, filters),
    )
    return Promise(**defaults | fields)


def filters(*kept):
    w = torch.zeros(4, 3)
    w[list(kept)] = 1.0
    return w


def test_a_filter_counts_in_full_where_any_of_its_weights_is_not_zero():
    tensors = {"a": filters(0, 1, 2), "b": filters(3)}
    assert verify_tensors(tensors, [promise()]).holds
    tensors["b"][0, 2] = 1e-30
    assert verify_tensors(tensors, [promise()]).faults == [
        "the 2 layers of x.prune:4: 5 filters are not zero, 4 allowed: 1 revived or never pruned"
    ]


def test_weights_that_are_zero_here_and_there_are_no_filters():
    scattered = torch.zeros(4, 3)
    scattered[:, 0] = 1.0
    assert not verify_tensors({"a": scattered, "b": scattered}, [promise()]).holds


def test_each_layer_with_its_own_budget_is_judged_alone():
    tensors = {"a": filters(0, 1, 2), "b": filters(3)}
    verdict = verify_tensors(tensors, [promise(target=each_layer(0.5), keeps=(2, 2))])
    assert verdict.faults == ["a: 3 filters are not zero, 2 allowed: 1 revived or never pruned"]
    assert verdict.notes == ["b: 1 of 2 kept filters happens to be zero"]


def test_what_units_cost_is_added_up():
    asked = promise(of="flops", costs=(10, 1), keeps=(22,))
    assert verify_tensors({"a": filters(0, 1), "b": filters(0, 1)}, [asked]).holds
    verdict = verify_tensors({"a": filters(0, 1, 2), "b": filters()}, [asked])
    assert verdict.faults[0].startswith(
        "the 2 layers of x.prune:4: 30 multiply-accumulates are not zero, 22 allowed"
    )


def test_no_layer_may_hold_more_than_its_ceiling_although_the_budget_is_kept():
    asked = promise(ceilings=(2, 4), bounds=(Bound(name="late", members=(1,), floor=0, ceiling=2),))
    assert verify_tensors({"a": filters(0, 1), "b": filters(0, 1)}, [asked]).holds
    assert verify_tensors({"a": filters(0, 1, 2), "b": filters(0)}, [asked]).faults == [
        "a: 3 filters are not zero, the ceiling is 2"
    ]
    assert verify_tensors({"a": filters(0), "b": filters(0, 1, 2)}, [asked]).faults == [
        "the layers within late: 3 filters are not zero, the ceiling is 2"
    ]


def test_a_head_is_kept_where_any_of_its_weights_is():
    cuts = (Cut(shape=(2, 6), units=(0,)), Cut(shape=(4, 3), units=(0,)))
    asked = promise(
        granularity="head",
        cuts=(cuts[0], Cut(shape=(2, 6), units=(0,))),
        spans=(2,),
        target=each_layer(0.5),
        keeps=(1,),
    )
    assert verify_tensors({"a": filters(0, 1), "b": filters(1)}, [asked]).holds
    assert verify_tensors({"a": filters(0, 1), "b": filters(2)}, [asked]).faults == [
        "a and b: 2 heads are not zero, 1 allowed: 1 revived or never pruned"
    ]


def test_the_right_count_in_the_wrong_places_is_no_pattern():
    asked = Promise(
        rule="x.prune:4",
        target=NM(n=2, m=4),
        asked=0.5,
        parameters=("a",),
        num_weights=(8,),
        keeps=(4,),
        cuts=(Cut(shape=(2, 4), units=(0,)),),
    )
    good = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    assert verify_tensors({"a": good}, [asked]).holds
    wrong = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    assert verify_tensors({"a": wrong}, [asked]).faults == [
        "a: 1 of 2 groups of 4 weights holds more than 2 that are not zero"
    ]
    assert "(uniform, 2:4, x.prune:4)" in show_verdict(verify_tensors({"a": good}, [asked]))


def test_a_pattern_that_has_not_begun_promises_nothing():
    asked = Promise(
        rule="x.prune:4",
        target=NM(n=2, m=4),
        asked=0.0,
        parameters=("a",),
        num_weights=(8,),
        keeps=(8,),
        cuts=(Cut(shape=(2, 4), units=(0,)),),
    )
    assert verify_tensors({"a": torch.ones(1, 8)}, [asked]).holds


def test_the_table_says_what_was_counted():
    text = show_verdict(verify_tensors({"a": filters(0, 1), "b": filters(3, 2)}, [promise()]))
    assert "asked 50% of filters, measured 50% of them and 50% of the weights" in text
    assert "4 of 8 filters may be kept, 4 are" in text


@pytest.mark.parametrize(
    "target, name",
    [
        (each_layer(0.5), "uniform"),
        (Erk(sparsity=Percent(0.5)), "ERK"),
        (Sensitivity(sparsity=Percent(0.5), profile="x.json"), "sensitivity"),
    ],
)
def test_an_allocation_is_called_by_its_name(target, name):
    asked = promise(target=target, keeps=(2, 2))
    text = show_verdict(verify_tensors({"a": filters(0, 1), "b": filters(3, 2)}, [asked]))
    assert f"group 0 ({name}, " in text
