"""What a rule's budget is, what its layers are sure to keep, and what cannot be had."""

import pytest
from support.resolving import codes_of, plan_of, resolve
from torch import nn

from dcil_dsl.words.registry import to_record

SIZES = (216, 576, 192, 576, 192, 144, 192)  # the convolutions of resolving.Net


def group_of(statements, **more):
    (group,) = plan_of(statements, **more).groups
    return group


def test_a_global_target_is_one_budget_and_a_bare_percentage_one_a_layer():
    assert group_of("prune Conv2d to global(90%)").one_budget
    assert not group_of("prune Conv2d to uniform(90%)").one_budget
    assert group_of("prune Conv2d to 90%") == group_of("prune Conv2d to 90%")
    assert not group_of("prune Conv2d to 90%").one_budget
    assert group_of("prune Conv2d to 90%").num_weights == SIZES


def test_without_a_floor_each_layer_is_sure_of_one_weight():
    assert group_of("prune Conv2d to global(90%)").floors == (1,) * 7


def test_a_floor_is_a_share_of_each_layer_rounded_up():
    group = group_of("prune Conv2d to global(90%) { floor = 1% }")
    assert group.floors == (3, 6, 2, 6, 2, 2, 2)
    assert group_of("prune Conv2d to global(90%) { floor = 0% }").floors == (1,) * 7


def test_a_floor_of_exactly_the_target_is_allowed():
    group = group_of('prune "layer1.0.conv1", "layer1.1.conv1" to 75% { floor = 25% }')
    assert group.floors == (144, 144)


@pytest.mark.parametrize(
    "rule, message",
    [
        (
            "prune Conv2d to global(99%) { floor = 5% }",
            "99% of 2,088 weights leaves 20 weights, the floors keep 107",
        ),
        (
            'prune "stem" to 90% { floor = 20% }',
            "90% of `stem.weight` (216 weights) leaves 21 weights, the floors keep 44",
        ),
        (
            "prune Conv2d to global(99.9%)",
            "99.9% of 2,088 weights leaves 2 weights, the floors keep 7",
        ),
        (
            'prune "stem" to 99.9%',
            "99.9% of `stem.weight` (216 weights) leaves 0 weights, the floors keep 1",
        ),
    ],
)
def test_a_target_that_the_floors_do_not_leave_is_an_error(rule, message):
    _, (error,) = resolve(rule)
    assert (error.code, error.message) == ("E304", message)


def test_one_weight_is_reported_in_the_singular():
    _, (error,) = resolve("prune Linear to 50%", nn.Sequential(nn.Linear(1, 1)))
    message = "50% of `0.weight` (1 weight) leaves 0 weights, the floors keep 1"
    assert (error.code, error.message) == ("E304", message)


def test_a_target_that_leaves_a_whole_layer_less_than_one_weight_is_an_error():
    assert codes_of('prune "head" where out_features == 10 to 98.75%') == []  # 1 of 80
    assert codes_of('prune "head" where out_features == 10 to 99%') == ["E304"]  # 0.8 of 80


# -- time: the run has 10 epochs of 10 steps --------------------------------------------------


def test_times_become_steps():
    group = group_of(
        "prune Conv2d to 90% { schedule = cubic(1ep..75% run, initial=10%, grid=5 steps) "
        "refresh = 0.5ep freeze = 9ep }"
    )
    assert to_record(group.schedule) == {
        "word": "cubic",
        "settings": {"over": [10, 75], "initial": 0.1, "grid": 5},
    }
    assert (group.refresh, group.freeze) == (5, 90)


def test_what_rounds_to_less_than_a_step_is_a_step():
    group = group_of(
        "prune Conv2d to 90% { schedule = linear(0ep..1ep, grid=0.01ep) refresh = 0.01ep }"
    )
    assert (group.schedule.grid.step, group.refresh) == (1, 1)


def test_a_rule_takes_from_the_pruning_block_what_it_does_not_say_itself():
    plan = plan_of(
        "pruning { score = l2 refresh = 7 steps schedule = once(at=2ep) }\n"
        "prune Conv2d to 90%\nprune Linear to 50% { refresh = 3 steps }"
    )
    assert [(g.score.called, g.refresh, g.schedule.reached) for g in plan.groups] == [
        ("l2", 7, 20),
        ("l2", 3, 20),
    ]


@pytest.mark.parametrize(
    "settings, message",
    [
        ("schedule = cubic(0ep..100% run)", "the target is reached at step 100, the run has 100"),
        ("schedule = cubic(0ep..12ep)", "the target is reached at step 120, the run has 100"),
        ("schedule = once(at=10ep)", "the target is reached at step 100, the run has 100"),
        (
            "schedule = cubic(0ep..5ep) freeze = 49 steps",
            "masks freeze at step 49, before the target is reached at 50",
        ),
        ("schedule = linear(1 step..0.1001ep)", "the ramp is shorter than one step"),
    ],
)
def test_a_target_that_no_step_trains_at_is_an_error(settings, message):
    _, (error,) = resolve(f"prune Conv2d to 90% {{ {settings} }}")
    assert (error.code, error.message) == ("E305", message)


@pytest.mark.parametrize(
    "settings",
    [
        "schedule = cubic(0ep..99 steps)",
        "schedule = once(at=99 steps)",
        "schedule = cubic(0ep..5ep) freeze = 5ep",
        "freeze = 0ep",
    ],
)
def test_one_step_at_the_target_is_enough(settings):
    assert codes_of(f"prune Conv2d to 90% {{ {settings} }}") == []


def test_every_error_of_a_model_is_reported_at_once_in_the_order_of_the_text():
    _, errors = resolve(
        'prune "nose" to 90%\nprune BatchNorm2d to 90%\n'
        'prune "stem" to 90% { schedule = once(at=10ep) floor = 20% }'
    )
    assert [d.code for d in errors] == ["E301", "E302", "E305", "E304"]
    assert [d.span.line for d in errors] == [2, 3, 4, 4]
