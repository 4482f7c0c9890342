"""Integrators in whole runs: what moves once a step, what a checkpoint holds, what is refused."""

from __future__ import annotations

import pytest
import torch
from support.same_runs import assert_equal_runs, assert_same, contents
from support.tiny_ranks import on_ranks, plain_plan, rank_train, said
from support.tiny_run import TinyData, tiny_dual, tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.integrate import integrate, players
from dcil_dsl.words.step import RK4, Extrapolate, Heun, Implicit, Integrator


def plan_with(integrator: Integrator) -> Plan:
    return tiny_plan(train={"integrator": integrator})


@pytest.mark.parametrize("word", [Heun(), RK4(), Implicit(iterations=3)], ids=lambda w: w.called)
def test_running_statistics_move_once_and_all_evaluations_draw_the_same_numbers(word):
    """Over no distance every evaluation is the first one, dropout included."""
    images, _ = next(iter(TinyData().epoch(0)))
    dual, plain = tiny_dual(plan_with(word)), tiny_dual()

    def learn(dual):
        torch.manual_seed(5)
        sum(y.square().mean() for y in dual(images).values()).backward()

    dual.begin_step(0)
    plain.begin_step(0)
    integrate(dual, 0.0, lambda: learn(dual), {})
    learn(plain)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, dual.get_buffer(name)), name
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dual.get_parameter(name).grad, parameter.grad)


def test_a_resumed_run_remembers_the_gradient_of_the_step_before(tmp_path):
    plan = plan_with(Extrapolate())
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=8)
    assert contents(tmp_path / "run")[0]["memory/previous/conv1.weight"].any()
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_run_with_four_gradients_resumes_and_tells_what_it_costs(tmp_path):
    plan = plan_with(RK4(players="each"))
    straight, _, _ = tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=7)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    assert straight.cost == training_cost(plan) == 14  # two paths, 1 + 3 + 3 evaluations


@pytest.mark.parametrize(
    "word, evaluations",
    [
        (Heun(), 2),
        (RK4(), 4),
        (Implicit(iterations=5), 5),
        (Extrapolate(), 1),
        (Extrapolate(direction="fresh"), 2),
        (Heun(players="each"), 3),
    ],
)
def test_the_cost_counts_every_evaluation(word, evaluations):
    assert training_cost(plan_with(word)) == 2 * evaluations


def test_the_two_players_have_every_entry_once_and_twins_are_of_the_second():
    dual = tiny_dual(plan_with(Heun(players="each")))
    dual.refresh(12)
    names = [name for name, _ in dual.trainable()]
    one, other = players(dual)
    assert all(torch.equal(a, ~b) for a, b in zip(one, other))
    of_first = dict(zip(names, one))
    assert torch.equal(of_first["conv1.weight"], dual.masks["conv1.weight"])
    assert of_first["fc.weight"] and of_first["conv1.bias"] and not of_first["fc__dense.weight"]


@pytest.mark.parametrize(
    "word",
    [RK4(players="each"), Extrapolate(), Heun()],
)
def test_several_ranks_have_the_evaluations_of_one_process(tmp_path, word):
    plan = plain_plan(train={"integrator": word})
    rank_train(tmp_path / "alone", Ranks(), plan, max_steps=8)

    def work(ranks):
        rank_train(tmp_path / "run", ranks, plan, max_steps=8)

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize("word", [Heun(players="each"), Extrapolate()])
def test_weights_in_parts_have_them_too_and_what_a_step_remembers_is_parted_with_them(
    tmp_path, word
):
    plan = plain_plan(train={"integrator": word})
    rank_train(tmp_path / "alone", Ranks(), plan, max_steps=8)

    def work(ranks):
        rank_train(tmp_path / "run", ranks, plan, max_steps=6, shard=True)

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)
    rank_train(tmp_path / "run", Ranks(), plan, max_steps=8)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


def test_displaced_weights_compile_nothing_anew(tmp_path, graphs_compiled):
    plan = plan_with(RK4())
    _, compiled, _ = tiny_train(tmp_path / "compiled", plan, compile=True)
    _, plain, _ = tiny_train(tmp_path / "plain", plan)
    assert len(graphs_compiled) == 2  # before the distillation starts, and after
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes, options",
    [
        ({"accumulate": 2}, {}),
        ({"precision": "fp16"}, {}),
        ({}, {"precision": "fp16"}),
    ],
)
def test_what_an_integrator_cannot_do_is_refused(tmp_path, changes, options):
    plan = tiny_plan(train={"integrator": Heun()} | changes)
    plan = plan.model_copy(update={"steps_per_epoch": -(-5 // plan.train.accumulate)})
    with pytest.raises(InputError, match="`integrator`"):
        tiny_train(tmp_path / "run", plan, **options)
