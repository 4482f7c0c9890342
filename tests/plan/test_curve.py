"""Curves in the terminal: what is drawn is what the schedule says, on any page."""

from support.in_steps import each_layer, once
from support.resolving import plan_of

from dcil_dsl.plan.plan import Group
from dcil_dsl.plan.show import show_plan
from dcil_dsl.plan.text import Page, bar, draw_schedule, filled

ONCE = "prune Conv2d to 80% { schedule = once(at=5ep) refresh = 1ep freeze = 7ep }"


def test_a_filled_curve_has_a_column_for_each_value_and_thirds_of_a_row():
    assert filled([0, 1 / 6, 1 / 2, 2 / 3, 1], 2, unicode=False) == [
        "   .#",
        " .###",
    ]
    assert filled([0, 1 / 16, 1], 1, unicode=True) == [" \u2581\u2588"]


def test_what_is_not_zero_is_never_drawn_as_nothing():
    assert filled([1e-6], 3, unicode=False) == [" ", " ", "."]
    assert (bar(1e-6, 10, unicode=False), bar(0.0, 10, unicode=False)) == ("#", "")
    assert bar(1e-6, 10, unicode=True) == "\u258f"


def test_a_bar_is_as_long_as_its_share_of_the_width():
    assert (bar(0.5, 8, unicode=False), bar(7.0, 8, unicode=False)) == ("####", "########")
    assert bar(0.55, 10, unicode=True) == "\u2588" * 5 + "\u258c"


def test_the_curve_rises_where_the_schedule_does_and_marks_when_masks_move():
    """100 steps in 50 columns: once at step 50; masks at every 10th step until step 70."""
    plan = plan_of(ONCE)
    lines = draw_schedule(plan.groups[0], plan, Page(68))
    top, marks = lines[0].partition("|")[2], lines[6].partition("|")[2]
    assert len(top) == len(marks) == 50
    assert top == " " * 25 + "#" * 25
    assert [i for i, c in enumerate(marks) if c == "^"] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert lines[0].startswith("   80% |") and lines[6].startswith(" masks |")


def test_the_axis_tells_epochs_and_steps_at_round_numbers():
    plan = plan_of(ONCE)
    epochs, steps = draw_schedule(plan.groups[0], plan, Page(80))[-2:]
    assert epochs.split() == ["epoch", "0", "2", "4", "6", "8", "10"]
    assert steps.split() == ["step", "0", "20", "40", "60", "80", "100"]


def test_a_ramp_whose_masks_move_rarely_is_drawn_with_its_stairs():
    plan = plan_of("prune Conv2d to 80% { schedule = linear(0ep..5ep) refresh = 25 steps }")
    rows = draw_schedule(plan.groups[0], plan, Page(80))[:6]
    heights = [sum(row.ljust(80)[col] != " " for row in rows) for col in range(8, 70)]
    assert sorted(set(heights)) == [0, 3, 6]


def test_groups_with_one_schedule_share_one_drawing_and_constant_ones_need_none():
    rule = 'prune "{}" to 80% {{ schedule = linear(0ep..5ep) }}'
    same = f"{rule.format('layer1')}\n{rule.format('layer2')}"
    assert show_plan(plan_of(same)).count("masks |") == 1
    assert show_plan(plan_of(same.replace("5ep", "6ep", 1))).count("masks |") == 2
    assert "of :2 over the run" in show_plan(plan_of(same.replace("5ep", "6ep", 1)))
    assert "masks |" not in show_plan(plan_of("prune Conv2d to 80%"))


def test_a_run_of_no_steps_has_no_curve():
    plan = plan_of(ONCE).model_copy(update={"num_steps": 0})
    assert draw_schedule(plan.groups[0], plan, Page()) == []


def test_a_target_of_nothing_is_a_line_at_zero():
    group = Group(
        rule="x:1",
        parameters=("w",),
        num_weights=(4,),
        target=each_layer(0.0),
        score="magnitude",
        schedule=once(3),
        refresh=1,
        floors=(1,),
    )
    lines = draw_schedule(group, plan_of(ONCE), Page())
    assert all(set(line.partition("|")[2]) <= {" "} for line in lines[:6])
