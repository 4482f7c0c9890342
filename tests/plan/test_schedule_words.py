"""Schedules against their formulas, and patterns that ramp, down to the masks."""

import pytest
import torch
from support.in_steps import steps
from support.resolving import codes_of, plan_of

import dcil_dsl as dcil
from dcil_dsl.exporting.artefact import origin_of
from dcil_dsl.plan.schedule import is_refresh, keeps_at, reached_at, sparsity_at
from dcil_dsl.training.sparsity import check_sparsity
from dcil_dsl.words.schedules import Cyclic, ExponentialRamp, Iterative, Staged
from dcil_dsl.words.units import Percent, Range

OVER = Range(steps(10), steps(50))
TARGET = 0.9


def test_an_exponential_ramp_multiplies_the_density_by_one_factor_in_equal_times():
    schedule = ExponentialRamp(over=OVER, initial=Percent(0.2), grid=steps(1))
    densities = [1 - schedule.sparsity(step, TARGET) for step in range(10, 51)]
    factors = [after / before for before, after in zip(densities, densities[1:])]
    assert factors == pytest.approx([(0.1 / 0.8) ** (1 / 40)] * 40)
    assert densities[0] == pytest.approx(0.8) and schedule.sparsity(50, TARGET) == TARGET
    assert schedule.sparsity(0, TARGET) == pytest.approx(0.2)


def test_iterative_rounds_prune_the_same_share_of_what_is_left():
    schedule = Iterative(over=OVER, rounds=5)
    assert schedule.sparsity(9, TARGET) == 0 and schedule.turns == (10, 20, 30, 40)
    left = [1 - schedule.sparsity(step, TARGET) for step in (10, 20, 30, 40, 50)]
    assert left == pytest.approx([0.1 ** (k / 5) for k in range(1, 6)])
    assert schedule.sparsity(19, TARGET) == schedule.sparsity(10, TARGET)
    assert schedule.sparsity(50, TARGET) == TARGET


def test_stages_hold_from_their_moments_and_the_target_from_the_last():
    schedule = Staged(at=(steps(5), steps(10), steps(20)), stages=(Percent(0.5), Percent(0.75)))
    asked = [schedule.sparsity(step, TARGET) for step in (0, 4, 5, 9, 10, 19, 20, 99)]
    assert asked == [0, 0, 0.5, 0.5, 0.75, 0.75, TARGET, TARGET]


def test_cycles_rise_as_a_cube_and_begin_again():
    schedule = Cyclic(over=OVER, cycles=4, initial=Percent(0.3))
    assert schedule.turns == (10, 20, 30, 40)
    for start in schedule.turns:
        for step in range(start, start + 10):
            u = (step - start) / 10
            assert schedule.sparsity(step, TARGET) == pytest.approx(0.9 - 0.6 * (1 - u) ** 3)
    assert schedule.sparsity(0, TARGET) == 0.3 and schedule.sparsity(50, TARGET) == TARGET


def test_schedules_that_have_no_meaning_are_errors():
    def codes(schedule, target="90%"):
        return codes_of(f"prune Conv2d to {target} {{ schedule = {schedule} }}")

    assert codes("iterative(0ep..6ep, rounds=3)") == []
    assert codes("iterative(0ep..1 steps, rounds=3)") == ["E305"]
    assert codes("cyclic(0ep..2 steps, cycles=4)") == ["E305"]
    assert codes("staged(at=[4ep, 2ep], stages=[50%])") == ["E305"]
    assert codes("staged(at=[2ep, 40ep], stages=[50%])") == ["E305"]


def pattern_plan(schedule="linear(0ep..4ep)"):
    rule = 'prune Conv2d except first Conv2d, "layer2.**" to 2:4'
    return plan_of(f"{rule} {{ schedule = {schedule} refresh = 1 steps }}")


def test_a_pattern_that_ramps_keeps_four_three_and_two_of_four():
    (group,) = pattern_plan().groups
    size = group.num_weights[0]
    kept = [keeps_at(group, step)[0] * 4 / size for step in (0, 19, 20, 39, 40, 99)]
    assert kept == [4, 4, 3, 3, 2, 2]
    assert [sparsity_at(group, step) for step in (19, 20, 40)] == [0, 0.25, 0.5]
    assert reached_at(group) == 40 and is_refresh(group, 40)


def test_the_masks_of_a_pattern_that_ramps_keep_as_many_of_every_four():
    from support.resolving import Net

    torch.manual_seed(0)
    plan = pattern_plan()
    dual = dcil.compile(plan, Net())
    for step, kept in ((0, 4), (19, 4), (20, 3), (39, 3), (40, 2)):
        dual.begin_step(step)
        check_sparsity(dual, step)
        for name, mask in dual.masks.items():
            cut = dict(zip(plan.groups[0].parameters, plan.groups[0].cuts))[name]
            counts = mask.sum() * 4 / mask.numel()
            assert counts == kept, (step, name, cut)
    promise = origin_of(plan, 30).promises[0]
    assert promise.keeps[0] * 4 == promise.num_weights[0] * 3
