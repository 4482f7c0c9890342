"""Who runs and who learns from whom, over time. The run has 10 epochs of 10 steps."""

import pytest
from support.resolving import plan_of, resolve

from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import Shares, Window
from dcil_dsl.plan.show import show_plan

KL = "loss kl(student=sparse, teacher=dense)"
DCIL = "update kept by sparse  update pruned by dense"
BOTH = "loss cross_entropy(sparse)  loss cross_entropy(dense)"


def mix(*statements):
    lines = ["path sparse = masked", "path dense = full", *statements, "deploy sparse"]
    return "mix {\n" + "\n".join(lines) + "\n}\n"


def phases(*statements):
    plan = plan_of("prune Conv2d to 90%", mix=mix(*statements))
    return [(p.window.start, p.window.stop, p.paths, p.shares) for p in plan.phases]


def found(*statements):
    return resolve("prune Conv2d to 90%", mix=mix(*statements))[1]


def test_without_windows_there_is_one_phase():
    assert phases(DCIL, BOTH) == [
        (0, None, ("sparse", "dense"), (Shares(kept=1, rest=1), Shares(pruned=1)))
    ]


def test_the_rest_learns_as_the_kept_weights_do_unless_a_rule_says_otherwise():
    ((*_, (sparse, dense)),) = phases(DCIL, BOTH, "update rest by 0.5 * sparse + dense")
    assert (sparse.rest, dense.rest) == (0.5, 1)


def test_shares_are_the_matrix_of_parts_and_paths():
    ((*_, shares),) = phases(
        "update kept by sparse + 0.5 * dense", "update pruned by 0.9 * dense + 0.1 * sparse", BOTH
    )
    assert shares == (Shares(kept=1, pruned=0.1, rest=1), Shares(kept=0.5, pruned=0.9, rest=0.5))


def test_a_path_runs_while_a_loss_needs_it():
    cut = phases(DCIL, "loss cross_entropy(sparse)", "loss cross_entropy(dense) from 2ep until 6ep")
    assert [(start, stop, paths) for start, stop, paths, _ in cut] == [
        (0, 20, ("sparse",)),
        (20, 60, ("sparse", "dense")),
        (60, None, ("sparse",)),
    ]


def test_a_path_that_does_not_run_teaches_nobody():
    cut = phases(DCIL, "loss cross_entropy(sparse)", "loss cross_entropy(dense) from 2ep")
    assert [shares[1] for *_, shares in cut] == [Shares(), Shares(pruned=1)]


def test_the_teacher_path_of_an_open_kl_term_runs():
    cut = phases(DCIL, "loss cross_entropy(sparse)", "loss kl(student=sparse, teacher=dense)")
    assert [paths for _, _, paths, _ in cut] == [("sparse", "dense")]


def test_a_window_that_changes_no_path_and_no_update_cuts_nothing():
    cut = phases(DCIL, BOTH, "loss kl(student=sparse, teacher=dense) from 3ep until 5ep")
    assert [(start, stop) for start, stop, *_ in cut] == [(0, None)]


def test_alternating_updates_are_alternating_phases():
    cut = phases(
        "update kept, pruned by dense until 3ep",
        "update kept by sparse from 3ep until 5ep",
        "update kept, pruned by dense from 5ep",
        BOTH,
    )
    assert [(start, stop, dense.kept, sparse.kept) for start, stop, _, (sparse, dense) in cut] == [
        (0, 30, 1, 0),
        (30, 50, 0, 1),
        (50, None, 1, 0),
    ]


def test_windows_beyond_the_run_are_nothing():
    assert len(phases(DCIL, BOTH, "loss cross_entropy(dense) from 100% run")) == 1


def test_every_step_belongs_to_one_phase():
    plan = plan_of(
        "prune Conv2d to 90%",
        mix=mix(DCIL, "loss cross_entropy(sparse)", "loss cross_entropy(dense) from 2ep until 6ep"),
    )
    covering = [[p for p in plan.phases if p.window.covers(step)] for step in range(100)]
    assert all(len(one) == 1 for one in covering)
    assert [plan.phase_at(step) for step in range(100)] == [one for (one,) in covering]
    assert plan.phase_at(10**6) == plan.phases[-1]


@pytest.mark.parametrize("window", ["from 1 step until 3 steps", "from 5 steps until 6 steps"])
def test_a_window_too_short_for_a_path_that_runs_every_few_steps_is_no_phase(window):
    dense = "path dense = full { every = 5 steps }"
    text = mix(DCIL, "loss cross_entropy(sparse)", f"loss cross_entropy(dense) {window}")
    plan = plan_of("prune Conv2d to 90%", mix=text.replace("path dense = full", dense))
    runs = {step: plan.phase_at(step).paths for step in range(plan.num_steps)}
    open_at = {5} if window.startswith("from 5") else set()
    assert {step for step, paths in runs.items() if "dense" in paths} == open_at
    assert all(sum(p.window.covers(step) for p in plan.phases) == 1 for step in runs)
    assert all(phase.window.num_steps(plan.num_steps) for phase in plan.phases)


def strided(first, second, more=""):
    text = mix("update kept by sparse  update pruned by dense", BOTH, more)
    text = text.replace("= masked", f"= masked {{ {first} }}")
    return text.replace("= full", f"= full {{ {second} }}")


@pytest.mark.parametrize("offset", range(5))
def test_a_path_with_an_offset_runs_in_the_steps_with_that_remainder(offset):
    text = strided("", f"every = 5 steps  offset = {offset} steps")
    plan = plan_of("prune Conv2d to 90%", mix=text)
    runs = {s for s in range(plan.num_steps) if "dense" in plan.phase_at(s).paths}
    assert runs == {s for s in range(plan.num_steps) if s % 5 == offset}
    assert [loss.window.covers(7) for loss in plan.losses] == [True, offset == 2]
    assert training_cost(plan) == pytest.approx(1 + len(runs) / plan.num_steps)


def test_paths_with_different_offsets_run_in_turn():
    text = strided("every = 2 steps", "every = 2 steps  offset = 1 step")
    plan = plan_of("prune Conv2d to 90%", mix=text)
    assert [plan.phase_at(s).paths for s in range(4)] == [("sparse",), ("dense",)] * 2
    assert training_cost(plan) == 1.0
    assert "every 2nd step from step 1 on" in show_plan(plan)


def test_paths_of_three_offsets_leave_the_other_steps_to_what_always_runs():
    text = """mix {
      path sparse = masked
      path dense = full { every = 3 steps  offset = 2 steps }
      path rest = complement { every = 3 steps }
      update kept by sparse  update pruned by dense
      loss cross_entropy(sparse)  loss cross_entropy(dense)  loss cross_entropy(rest)
      deploy sparse
    }"""
    plan = plan_of("prune Conv2d to 90%", mix=text)
    rows = [("sparse", "rest"), ("sparse",), ("sparse", "dense")]
    assert [plan.phase_at(s).paths for s in range(6)] == rows * 2
    counts = [phase.window.num_steps(plan.num_steps) for phase in plan.phases]
    assert sorted(counts) == [33, 33, 34]


@pytest.mark.parametrize("start, stop", [(0, 0), (0, 7), (3, 4), (5, None), (9, 3), (11, 90)])
@pytest.mark.parametrize("offsets", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("others", [False, True])
def test_a_window_counts_the_steps_that_it_covers(start, stop, offsets, others):
    window = Window(start=start, stop=stop, every=4, offsets=offsets, others=others)
    for end in (0, 1, 8, 40):
        assert window.num_steps(end) == sum(window.covers(step) for step in range(end))


@pytest.mark.parametrize(
    "first, second, more, codes",
    [
        ("", "every = 2 steps  offset = 2 steps", "", ["E313"]),
        ("", "every = 5 steps  offset = 1ep", "", ["E313"]),
        ("every = 2 steps", "every = 2 steps  offset = 1 step", KL, ["E313"]),
        ("every = 2 steps", "every = 4 steps  offset = 3 steps", "", ["E313", "E309"]),
    ],
)
def test_an_offset_that_fits_no_stride_is_an_error(first, second, more, codes):
    found = resolve("prune Conv2d to 90%", mix=strided(first, second, more))[1]
    assert [d.code for d in found if d.is_error] == codes


def test_losses_have_names_of_their_own_and_windows_in_steps():
    losses = plan_of(
        "prune Conv2d to 90%",
        mix=mix(
            DCIL,
            BOTH,
            "loss 0.5 * cross_entropy(sparse, smoothing=0.1) from 25% run until 9ep",
            "loss 2 * kl(student=dense, teacher=sparse, temperature=3) from 5 steps",
        ),
    ).losses
    assert [(loss.name, loss.coefficient) for loss in losses] == [
        ("cross_entropy(sparse)", 1),
        ("cross_entropy(dense)", 1),
        ("cross_entropy(sparse)#2", 0.5),
        ("kl(dense<-sparse)", 2),
    ]
    assert [loss.window for loss in losses[2:]] == [Window(start=25, stop=90), Window(start=5)]
    assert (losses[2].term.smoothing, losses[3].term.temperature) == (0.1, 3)


def test_two_rules_for_one_part_at_one_moment_are_an_error():
    (error,) = found(
        "update pruned by dense",
        "update kept by sparse until 30 steps",
        "update kept by dense from 2ep",
        BOTH,
    )
    assert (error.code, error.message) == ("E306", "two rules update the kept weights at step 20")


def test_a_moment_at_which_no_path_runs_is_an_error_with_its_step():
    (error,) = found(DCIL, "loss cross_entropy(sparse) until 5ep")[:1]
    assert (error.code, error.message) == (
        "E309",
        "no loss is open from step 50, so no path runs",
    )


@pytest.mark.parametrize(
    "statements, part",
    [
        (["update pruned by dense", BOTH], "kept"),
        (["update kept by sparse", BOTH], "pruned"),
        ([DCIL, "loss cross_entropy(sparse)"], "pruned"),
    ],
)
def test_a_part_that_never_learns_is_warned_about(statements, part):
    (warning,) = found(*statements)
    assert (warning.code, warning.message) == ("W305", f"the {part} weights never learn")


@pytest.mark.parametrize("part", ["kept", "rest"])
def test_without_a_rule_the_weights_learn_and_none_of_them_is_called_kept(part):
    def dense(start, loss):
        update = f"update {part} by dense from {start}"
        return f"mix {{\npath dense = full\n{update}\nloss {loss}\ndeploy dense\n}}\n"

    plan, found = resolve("keep Linear", mix=dense("5ep", "cross_entropy(dense)"))
    assert found == []
    shown = show_plan(plan)
    assert "  weights learn from dense" in shown and "  weights get no gradient" in shown
    assert "kept weights" not in shown and "pruned weights" not in shown
    _, found = resolve("keep Linear", mix=dense("10ep", "cross_entropy(dense)"))
    told = [(d.code, d.message) for d in found]
    assert told == [
        ("W305", "the weights never learn"),
        ("W306", "this update begins after 100 steps, the run has 100"),
    ]


@pytest.mark.parametrize("output", ["logits", "logits#1"])
def test_a_term_that_stands_twice_has_two_names(output):
    term = f'loss cross_entropy(sparse, output="{output}")'
    plan = plan_of("prune Conv2d to 90%", mix=mix("update kept by sparse", term, term))
    name = f"cross_entropy(sparse, {output})"
    assert [loss.name for loss in plan.losses] == [name, f"{name}#2"]
