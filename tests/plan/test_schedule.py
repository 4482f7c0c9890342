"""Sparsity as a function of the step, exact counts, and the steps at which masks move."""

import pytest
from support.in_steps import cubic, each_layer, linear, once, one_budget

from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.schedule import (
    is_refresh,
    keeps_at,
    last_refresh,
    reached_at,
    sparsity_at,
)
from dcil_dsl.words.schedules import Constant


def group(kind="constant", target=0.9, sizes=(100,), floors=None, share=one_budget, **more):
    names = {"start", "stop", "initial", "grid"}
    settings = {k: v for k, v in more.items() if k in names}
    schedule = {
        "cubic": cubic,
        "linear": linear,
        "once": lambda start: once(start),
        "constant": Constant,
    }[kind](**settings)
    rest = {k: v for k, v in more.items() if k not in names}
    return Group(
        rule="x.prune:1",
        parameters=tuple(f"w{i}" for i in range(len(sizes))),
        num_weights=sizes,
        floors=floors or (1,) * len(sizes),
        target=share(target),
        score="magnitude",
        schedule=schedule,
        **{"refresh": 16} | rest,
    )


@pytest.mark.parametrize(
    "epoch, percent",
    [
        (0, 0),
        (5, 5.9),
        (10, 11.5),
        (20, 21.9),
        (50, 47.7),
        (70, 60.6),
        (100, 74.6),
        (150, 86.7),
        (200, 89.9),
        (225, 90),
        (299, 90),
    ],
)
def test_cubic_has_the_values_that_the_authors_ramp_has(epoch, percent):
    """s(e) = s_f - s_f (1 - e / 225)^3 with s_f = 90 %, 391 steps an epoch; arXiv:2109.04660."""
    ramp = group("cubic", start=0, stop=225 * 391, grid=391)
    assert 100 * sparsity_at(ramp, epoch * 391) == pytest.approx(percent, abs=0.05)


def test_a_grid_holds_the_value_of_its_first_step():
    ramp = group("cubic", start=0, stop=1000, grid=100)
    assert len({sparsity_at(ramp, step) for step in range(300, 400)}) == 1
    assert sparsity_at(ramp, 299) < sparsity_at(ramp, 300) < sparsity_at(ramp, 400)


def test_a_grid_that_does_not_divide_the_ramp_still_ends_at_the_target():
    ramp = group("linear", start=5, stop=25, grid=10)
    values = [sparsity_at(ramp, step) for step in (0, 5, 9, 10, 20, 24, 25)]
    assert values == pytest.approx([0, 0, 0, 0.225, 0.675, 0.675, 0.9])


def test_linear_is_a_straight_line_from_the_initial_sparsity():
    ramp = group("linear", start=10, stop=20, initial=0.5)
    values = [sparsity_at(ramp, step) for step in (0, 10, 15, 20, 99)]
    assert values == pytest.approx([0.5, 0.5, 0.7, 0.9, 0.9])


def test_once_is_nothing_and_then_the_target():
    ramp = group("once", start=7)
    assert [sparsity_at(ramp, step) for step in (0, 6, 7, 8)] == [0, 0, 0.9, 0.9]


def test_constant_is_the_target_from_the_first_step():
    assert sparsity_at(group(), 0) == sparsity_at(group(), 10**6) == 0.9


@pytest.mark.parametrize("kind", ["cubic", "linear"])
def test_a_ramp_never_falls_and_never_passes_the_target(kind):
    ramp = group(kind, start=3, stop=97, grid=4)
    values = [sparsity_at(ramp, step) for step in range(120)]
    assert values == sorted(values) and values[0] == 0 and values[-1] == 0.9


@pytest.mark.parametrize(
    "more, step",
    [
        ({"kind": "constant"}, 0),
        ({"kind": "once", "start": 7}, 7),
        ({"kind": "cubic", "start": 2, "stop": 30}, 30),
    ],
)
def test_the_target_is_reached_where_it_is_first_asked_for(more, step):
    ramp = group(**more)
    assert reached_at(ramp) == step
    assert sparsity_at(ramp, step) == 0.9 and (step == 0 or sparsity_at(ramp, step - 1) < 0.9)


# -- counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", range(100))
def test_a_whole_percentage_of_a_thousand_is_a_whole_number(percent):
    """1 - 0.9 is 0.09999999999999998 in floating point; the count is 100 all the same."""
    assert keeps_at(group(target=percent / 100, sizes=(1000,)), 0) == (1000 - 10 * percent,)


def test_never_a_weight_more_than_asked_is_kept():
    assert keeps_at(group(target=0.5, sizes=(5,)), 0) == (2,)
    assert keeps_at(group(target=0.9, sizes=(1000,)), 0) == (100,)
    assert keeps_at(group(target=0.9, sizes=(270_256,)), 0) == (27_025,)
    assert keeps_at(group(target=0.9, sizes=(463_792,)), 0) == (46_379,)
    assert keeps_at(group(target=0.95, sizes=(463_792,)), 0) == (23_189,)


def test_a_global_group_has_one_count_and_a_uniform_one_a_layer():
    sizes = (10, 30, 60)
    assert keeps_at(group(sizes=sizes), 0) == (10,)
    assert keeps_at(group(sizes=sizes, share=each_layer), 0) == (1, 3, 6)


def test_the_floors_are_kept_whatever_the_target():
    assert keeps_at(group(sizes=(10, 10), floors=(3, 2)), 0) == (5,)
    assert keeps_at(group(sizes=(10, 90), floors=(3, 2), share=each_layer), 0) == (3, 9)
    assert keeps_at(group(target=1.0, sizes=(10, 10)), 0) == (2,)


def test_before_the_ramp_everything_is_kept():
    assert keeps_at(group("cubic", start=5, stop=9, sizes=(7, 8)), 4) == (15,)


# -- when masks move -----------------------------------------------------------------------------

MOVING = [
    group(refresh=4),
    group(refresh=1),
    group("cubic", start=0, stop=10, refresh=4),
    group("cubic", start=3, stop=33, refresh=16, freeze=33),
    group("cubic", start=0, stop=10, refresh=4, freeze=17),
    group("linear", start=0, stop=8, refresh=4, freeze=8),
    group("once", start=7, refresh=100),
    group("once", start=7, refresh=5, freeze=11),
    group(refresh=3, freeze=0),
]


def test_masks_move_at_multiples_and_when_the_target_is_reached():
    ramp = group("cubic", start=0, stop=10, refresh=4)
    assert [s for s in range(20) if is_refresh(ramp, s)] == [0, 4, 8, 10, 12, 16]


def test_frozen_masks_move_a_last_time_when_they_freeze():
    ramp = group("cubic", start=0, stop=10, refresh=4, freeze=17)
    assert [s for s in range(40) if is_refresh(ramp, s)] == [0, 4, 8, 10, 12, 16, 17]


def test_masks_frozen_from_the_start_are_made_once():
    assert [s for s in range(9) if is_refresh(group(freeze=0, refresh=3), s)] == [0]


@pytest.mark.parametrize("moving", MOVING, ids=range(len(MOVING)))
def test_the_last_refresh_is_the_latest_step_that_is_one(moving):
    for step in range(60):
        assert last_refresh(moving, step) == max(
            s for s in range(step + 1) if is_refresh(moving, s)
        )


def test_the_last_refresh_of_a_long_frozen_run_is_found_at_once():
    ramp = group("cubic", start=0, stop=10**9, refresh=7, freeze=10**9 + 3)
    assert last_refresh(ramp, 10**15) == 10**9 + 3


@pytest.mark.parametrize("moving", MOVING, ids=range(len(MOVING)))
def test_after_the_ramp_the_masks_in_force_are_those_of_the_target(moving):
    for step in range(reached_at(moving), 60):
        assert keeps_at(moving, last_refresh(moving, step)) == keeps_at(moving, 10**6) == (10,)
