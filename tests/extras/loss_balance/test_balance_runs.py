"""Balanced losses in whole runs: measuring moves nothing, resumed to the bit, told, refused."""

from __future__ import annotations

import json

import pytest
import torch
from support.in_steps import steps
from support.same_runs import assert_same, contents
from support.tiny_run import TinyData, tiny_dual, tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.loss_balance.step import WEIGHTS, start_weights, weigh_terms
from dcil_dsl.extras.loss_balance.word import InverseDirichlet
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.training.losses import loss_terms
from dcil_dsl.words.scores import Taylor


def plan_with(every=4, group=None, **train) -> p.Plan:
    return tiny_plan({"balance": InverseDirichlet(every=steps(every), average=0.5)} | train, group)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_measuring_leaves_weights_statistics_and_scores_where_they_were():
    group = {"score": Taylor(path="sparse")}
    plan = plan_with(group=group)
    dual, memory = tiny_dual(plan), start_weights(plan)
    images, labels = next(iter(TinyData().epoch(0)))
    dual.begin_step(8)
    before = {name: tensor.clone() for name, tensor in dual.state_dict().items()}

    def learn(i):
        loss_terms(plan, dual(images), labels, 8)[plan.losses[i].name].backward()

    weigh_terms(dual, 8, learn, memory)
    assert (memory[WEIGHTS] > 1).sum() == 2  # of each path's two the one with less spread
    assert all(torch.equal(before[name], t) for name, t in dual.state_dict().items())
    assert all(parameter.grad is None for parameter in dual.parameters())


def test_a_step_that_is_measured_draws_the_numbers_of_one_that_is_not(tmp_path):
    """Step 8 is; up to its update nothing may differ, dropout and running statistics included."""
    tiny_train(tmp_path / "plain", tiny_plan(), max_steps=9)
    tiny_train(tmp_path / "run", plan_with(every=8), max_steps=9)
    plain, run = (lines(tmp_path / name) for name in ("plain", "run"))
    assert [line["losses"] for line in plain] == [line["losses"] for line in run]
    assert max(run[-1]["balance"].values()) > 1
    buffers = [
        {n: t for n, t in contents(tmp_path / name)[0].items() if "running" in n and "model/" in n}
        for name in ("plain", "run")
    ]
    assert all(torch.equal(tensor, buffers[1][name]) for name, tensor in buffers[0].items())


@pytest.mark.parametrize("stop", [7, 10])
def test_a_resumed_run_resumes_with_its_weights(tmp_path, stop):
    plan = plan_with(every=3)
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=stop)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    last = lines(tmp_path / "run")[-1]
    assert max(last["balance"].values()) > 1 and set(last["balance"]) == set(last["losses"])


def test_the_cost_counts_what_is_measured():
    """20 steps of two paths; at steps 8, 12 and 16 four terms are open, of both paths each."""
    assert training_cost(plan_with(every=4)) == pytest.approx(2 + 3 * 4 * 2 / 20)


@pytest.mark.parametrize("changes, options", [({"accumulate": 2}, {}), ({}, {"precision": "fp16"})])
def test_what_a_balance_cannot_measure_is_refused(tmp_path, changes, options):
    plan = plan_with(**changes)
    plan = plan.model_copy(update={"steps_per_epoch": -(-5 // plan.train.accumulate)})
    with pytest.raises(InputError, match="`balance`"):
        tiny_train(tmp_path / "run", plan, **options)
