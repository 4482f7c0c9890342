"""What layers of one rule keep together, and when that cannot be had."""

import pytest
from support.resolving import plan_of, resolve

from dcil_dsl.plan import plan as p
from dcil_dsl.plan.schedule import bounds_at, keeps_at, limits_at

NAMES = 'layers early = "stem", "layer1.0"\nlayers late = "layer2.*"\n'


def group_of(rule):
    (group,) = plan_of(NAMES + rule).groups
    return group


def test_a_bound_counts_the_units_of_its_layers_together():
    group = group_of(
        "prune Conv2d to global(50%, granularity=filter(ties=none)) "
        "{ bounds = [within(early, floor=55%), within(late, ceiling=35%)] }"
    )
    # early: three layers of 8 filters, 13.2 rounded up; late: two, 5.6 rounded down.
    assert group.bounds == (
        p.Bound(name="early", members=(0, 1, 2), floor=14, ceiling=24),
        p.Bound(name="late", members=(5, 6), floor=0, ceiling=5),
    )
    # 14 of early, one filter of each of the other four; all but 11 of late.
    assert limits_at(group, 0) == (18, 45)
    assert keeps_at(group, 0) == (28,)


def test_the_ceiling_of_a_bound_comes_down_with_the_ramp():
    group = group_of(
        "prune Conv2d to global(50%) "
        "{ bounds = [within(late, ceiling=50%)] schedule = linear(0ep..5ep) }"
    )
    assert [bounds_at(group, step)[0].ceiling for step in (0, 25, 50)] == [336, 252, 168]


@pytest.mark.parametrize(
    "rule, code, message",
    [
        (
            "prune Conv2d to global(60%) { bounds = [within(early, floor=95%)] }",
            "E304",
            "60% of 2,088 weights leaves 835 weights, floors and bounds keep 939",
        ),
        (
            "prune Conv2d to global(10%) { bounds = [within(early, ceiling=50%)] }",
            "E304",
            "10% of 2,088 weights leaves 1,879 weights, the bounds allow 1,596",
        ),
        (
            "prune Conv2d to global(50%, granularity=filter(ties=none), of=weights) "
            "{ bounds = [within(early, floor=50%)] }",
            "E319",
            "filters of different layers cost different numbers of weights",
        ),
    ],
)
def test_a_bound_that_cannot_be_held_is_reported_at_its_place(rule, code, message):
    _, (error,) = resolve(NAMES.splitlines()[0] + "\n" + rule)
    assert (error.code, error.message) == (code, message)
    assert error.span.text.startswith("within(early,")
