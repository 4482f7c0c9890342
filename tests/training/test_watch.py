"""What follows from evaluations: the end of a run, its best checkpoint, a rate that falls."""

from __future__ import annotations

import json

import pytest
from support.in_steps import steps
from support.same_runs import assert_same, contents
from support.tiny_run import STEPS_PER_EPOCH, tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.training.checkpoint_files import Position
from dcil_dsl.training.conflicts import check_plan_allows
from dcil_dsl.training.watch import best_step, is_over, note, rate_share
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.rates import Early, Multistep, Plateau

EPOCHS = 8
SPOILED = Multistep(at=(steps(25),), gamma=1e3)  # what was learnt is lost after the fifth epoch


def plan_of(**train):
    settings = {"num_epochs": EPOCHS, "rate": SPOILED} | train
    return tiny_plan(train=settings, num_steps=EPOCHS * STEPS_PER_EPOCH)


def values_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["top1"]["sparse"] for line in lines}


def test_the_best_checkpoint_at_full_sparsity_is_what_the_run_ends_with(tmp_path):
    result, dual, run = tiny_train(tmp_path / "run", plan_of(checkpoint="best"))
    values = values_of(tmp_path / "run")
    sparse = {step: value for step, value in values.items() if step > 12}
    best = max(sparse, key=lambda step: (sparse[step], -step))
    assert best < 40 and values[best] > values[40]
    assert (result.step, result.ended) == (best, True)
    assert result.accuracies["sparse"]["top1"] == values[best]
    tensors, position, _ = contents(tmp_path / "run")
    assert (position["step"], position["stopped"]) == (best, True)
    assert all((dual.state_dict()[n] == tensors[f"average/{n}"]).all() for n in dual.masks)
    again, _, _ = tiny_train(tmp_path / "run", plan_of(checkpoint="best"), resume=True)
    assert (again.step, again.accuracies) == (result.step, result.accuracies)


def test_the_best_of_a_run_that_was_cut_short_is_that_of_the_straight_run(tmp_path):
    plan = plan_of(checkpoint="best")
    tiny_train(tmp_path / "straight", plan)
    short, _, _ = tiny_train(tmp_path / "run", plan, max_steps=33)
    assert short.step == 33 and not short.ended
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_run_ends_early_and_says_that_it_ended(tmp_path):
    plan = plan_of(stop=Early(patience=steps(5)))
    result, _, _ = tiny_train(tmp_path / "run", plan)
    values = values_of(tmp_path / "run")
    assert result.step < 40 and result.ended and max(values) == result.step
    later = [value for step, value in values.items() if step > 12]
    assert later[-1] <= max(later[:-1])
    again, _, _ = tiny_train(tmp_path / "run", plan, resume=True)
    assert (again.step, again.accuracies) == (result.step, result.accuracies)


def test_only_evaluations_at_full_sparsity_count():
    plan = plan_of(stop=Early(patience=steps(10)), checkpoint="best")
    at = Position(step=20, watched=[(5, 0.9), (10, 0.9), (15, 0.3), (20, 0.4)])
    assert best_step(plan, at) == 20 and not is_over(plan, at)
    at.watched += [(25, 0.4), (30, 0.2)]
    assert best_step(plan, at) == 20 and is_over(plan, at)


def test_a_loss_is_better_where_it_is_smaller_and_what_is_not_finite_does_not_count():
    plan, at = plan_of(), Position(step=5)
    note(plan, at, "mse", {"sparse": {"mse": 2.0}, "dense": {"mse": 1.0}})
    note(plan, at, "top1", {"sparse": {"top1": 0.5}})
    note(plan, at, "mse", {"sparse": {"mse": float("nan")}})
    assert at.watched == [(5, -2.0), (5, 0.5)]


def test_a_plateau_lowers_the_rate_of_the_steps_that_follow(tmp_path):
    plan = plan_of(rate=Plateau(factor=0.5, patience=steps(5)), optimizer=SGD(lr=4.0))
    tiny_train(tmp_path / "run", plan)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    position = contents(tmp_path / "run")[1]
    assert [step for step, _ in position["watched"]] == [5 * (i + 1) for i in range(EPOCHS)]
    for number, line in enumerate(lines):
        seen = Position(watched=[tuple(x) for x in position["watched"][:number]])
        assert line["lr"] == plan.lr_at(line["step"] - 1) * rate_share(plan, seen)
    assert len({line["lr"] for line in lines}) > 1


def test_a_plateau_that_was_cut_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(tmp_path):
    plan = plan_of(rate=Plateau(factor=0.5, patience=steps(5)), optimizer=SGD(lr=4.0))
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=23)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_checkpoint_in_parts_has_no_best(tmp_path):
    from dcil_dsl.training.machine import Options

    with pytest.raises(InputError, match="checkpoint = best"):
        check_plan_allows(plan_of(checkpoint="best"), Options(shard=True))
