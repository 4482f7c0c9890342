"""Late-phase weights in whole runs: resumed to the bit, the same on ranks, deployed, refused."""

from __future__ import annotations

import pytest
import torch
from support.in_steps import steps as in_steps
from support.same_runs import assert_equal_runs, assert_same, contents
from support.tiny_ranks import PlainNet, on_ranks, plain_plan, rank_train, said
from support.tiny_run import TinyData, tiny_dual, tiny_plan, tiny_train
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.late_phase.word import LatePhase
from dcil_dsl.training.checkpoint import load_deployed
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.evaluate import evaluate
from dcil_dsl.training.machine import Options
from dcil_dsl.training.run import resume_run
from dcil_dsl.training.trainer import train
from dcil_dsl.words.optimizers import SGD, AdamW

NORMS = ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias")


def train_with(parameters=NORMS, **changes) -> dict:
    phase = LatePhase(layers="some", parameters=parameters, copies=4, start=in_steps(6), noise=0.1)
    return {"ema": None, "clip": None, "average": phase} | changes


@pytest.mark.parametrize("stop", [4, 8, 13])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.01)])
def test_a_run_ended_before_or_within_a_round_resumes_to_the_bit(tmp_path, stop, optimizer):
    plan = tiny_plan(train=train_with(optimizer=optimizer))
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=stop)
    tensors = contents(tmp_path / "run")[0]
    assert tensors["memory/late/turn"] == (stop - 6 if stop > 6 else -1)
    assert bool(tensors["memory/late/sum/conv1.weight"].any()) == (stop > 6)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_what_is_evaluated_and_read_back_is_the_mean_of_the_copies(tmp_path):
    plan = tiny_plan(train=train_with())
    result, dual, run = tiny_train(tmp_path / "run", plan)
    tensors, other = contents(tmp_path / "run")[0], tiny_dual(plan)
    load_deployed(run.checkpoint, other)
    for name in NORMS:
        mean = tensors[f"memory/late/copy/{name}"].mean(0)
        assert torch.equal(mean, dual.get_parameter(name).detach())
        assert torch.equal(mean, other.get_parameter(name).detach())
    assert evaluate(other, TinyData(31, seed=1), Options()) == result.accuracies


def test_other_weights_stand_still_until_a_round_is_complete(tmp_path):
    plan = tiny_plan(train=train_with())
    for steps in (6, 9, 10):
        tiny_train(tmp_path / f"{steps}", plan, max_steps=steps)
    weights = [contents(tmp_path / f"{n}")[0]["model/conv2.weight"] for n in (6, 9, 10)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_a_run_that_takes_the_plan_over_late_begins_its_late_phase_then(tmp_path):
    tiny_train(tmp_path / "run", tiny_plan(train={"ema": None}), max_steps=13)
    plan = tiny_plan(train=train_with())
    run = resume_run(tmp_path / "run", plan, anyway=True)
    options = Options(resume=True, anyway=True)
    train(tiny_dual(plan), TinyData(), TinyData(31, seed=1), run, options)
    tensors = contents(tmp_path / "run")[0]
    assert tensors["memory/late/turn"] == 10  # from step 10, where it went on, to 20
    assert (tensors["memory/late/copy/bn1.weight"] > 0.1).all()


def test_two_ranks_take_the_turns_of_one_process(tmp_path):
    plan = plain_plan(train_with(parameters=("norm.weight", "norm.bias")))
    rank_train(tmp_path / "alone", Ranks(), plan)
    work = lambda ranks: rank_train(tmp_path / "run", ranks, plan)  # noqa: E731
    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


class HeadNet(PlainNet):
    """With weights enough in its head for them to be parted, were there no copies of them."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 200), nn.ReLU(), nn.Linear(200, 6))


def test_two_ranks_with_parts_of_the_shared_weights_take_the_turns_of_one_process(tmp_path):
    """Saved in the middle of a round, with what the shared weights have gathered."""
    plan = plain_plan(train_with(parameters=("fc.0.weight", "norm.weight", "norm.bias")))
    rank_train(tmp_path / "alone", Ranks(), plan, HeadNet)

    def work(ranks):
        rank_train(tmp_path / "run", ranks, plan, HeadNet, shard=True, max_steps=12)

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)
    rank_train(tmp_path / "run", Ranks(), plan, HeadNet)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


def test_scaled_gradients_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not go with fp16"):
        tiny_train(tmp_path / "run", tiny_plan(train=train_with()), precision="fp16")
