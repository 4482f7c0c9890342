"""Sparsity is proved by counting zeros in the stored numbers."""

import torch

from dcil_dsl.exporting.artefact import promises_at
from dcil_dsl.exporting.verify import show_verdict, verify_tensors


def test_tensors_with_exactly_the_asked_counts_hold(plan, tensors):
    verdict = verify_tensors(tensors, promises_at(plan, 10))
    assert verdict.holds and not verdict.notes
    assert [layer.num_nonzero for layer in verdict.layers] == [20, 10, 3]
    assert verdict.sparsity == 1 - 33 / 90


def test_one_weight_that_came_back_is_a_fault(plan, tensors):
    tensors["c.weight"][0, 1] = 1e-30
    verdict = verify_tensors(tensors, promises_at(plan, 10))
    assert verdict.faults == [
        "c.weight: 4 weights are not zero, 3 allowed: 1 revived or never pruned"
    ]


def test_a_global_budget_is_judged_over_its_layers_together(plan, tensors):
    moved = tensors["a.weight"].clone()
    moved[0, 0] = 0.0
    tensors["a.weight"] = moved
    tensors["b.weight"][9, 3] = 1.0
    assert verify_tensors(tensors, promises_at(plan, 10)).holds
    tensors["b.weight"][9, 2] = 1.0
    verdict = verify_tensors(tensors, promises_at(plan, 10))
    assert verdict.faults[0].startswith("the 2 layers of x.prune:4: 31 weights are not zero, 30")


def test_a_kept_weight_that_happens_to_be_zero_is_reported_and_is_no_fault(plan, tensors):
    tensors["c.weight"][0, 0] = 0.0
    verdict = verify_tensors(tensors, promises_at(plan, 10))
    assert verdict.holds
    assert verdict.notes == ["c.weight: 1 of 3 kept weights happens to be zero"]


def test_masks_catch_a_revived_weight_that_counting_alone_cannot(plan, tensors, masks):
    tensors["c.weight"][0, 0] = 0.0
    tensors["c.weight"][0, 1] = 1.0
    assert verify_tensors(tensors, promises_at(plan, 10)).holds
    verdict = verify_tensors(tensors, promises_at(plan, 10), masks)
    assert verdict.faults == ["c.weight: 1 pruned weight is not zero: revived"]


def test_a_missing_or_misshapen_or_infinite_tensor_is_a_fault(plan, tensors):
    del tensors["a.weight"]
    tensors["b.weight"] = torch.zeros(3)
    tensors["c.weight"][0, 0] = float("nan")
    verdict = verify_tensors(tensors, promises_at(plan, 10))
    assert verdict.faults == [
        "a.weight is missing",
        "b.weight has 3 weights, the plan 40",
        "c.weight holds numbers that are not finite",
    ]


def test_in_the_middle_of_the_ramp_only_what_the_schedule_asked_is_promised(plan, tensors):
    # After three updates the masks are those of step 2: 2/5 of the way to the targets.
    early = promises_at(plan, 3)
    assert [promise.keeps for promise in early] == [(48,), (19,)]
    assert verify_tensors(tensors, early).holds
    dense = {name: torch.ones(value.shape) for name, value in tensors.items()}
    assert not verify_tensors(dense, early).holds


def test_a_deployed_dense_path_promises_nothing(plan):
    assert promises_at(plan.model_copy(update={"deploy": "dense"}), 10) == ()


def test_the_table_says_asked_measured_and_the_verdict(plan, tensors):
    text = show_verdict(verify_tensors(tensors, promises_at(plan, 10)))
    assert "asked 50%, measured 50%; 30 of 60 weights may be kept, 30 are not zero" in text
    assert text.endswith("holds what was asked\n")
    tensors["c.weight"][:] = 1.0
    text = show_verdict(verify_tensors(tensors, promises_at(plan, 10)))
    assert text.endswith("does not hold what was asked: 1 fault\n")
