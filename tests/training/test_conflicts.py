"""Which ways of making a step go together, and that a replayed step is read before the next."""

from __future__ import annotations

import json

import pytest
import torch
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.loss_balance.word import InverseDirichlet
from dcil_dsl.training.conflicts import CONFLICTS, check_machine_allows, check_plan_allows
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.machine import Options
from dcil_dsl.training.options import flags
from dcil_dsl.words.step import Heun

REPLAYED = dict(compile=True, compile_mode="reduce-overhead", device="cuda")
NAME = "--compile-mode reduce-overhead"


@pytest.mark.parametrize(
    "options, message",
    [
        (REPLAYED | {"compile": False}, f"{NAME} needs --compile"),
        (REPLAYED | {"device": "cpu"}, f"{NAME} needs a CUDA device, and the device is cpu"),
        (REPLAYED | {"ranks": Ranks(0, 2)}, rf"{NAME} does not support several processes \(2 are"),
        (REPLAYED | {"compile_mode": "max"}, "--compile-mode max: must be default or reduce"),
        (dict(compile=True, checkpoint_activations=True), "does not go with --compile"),
    ],
)
def test_ways_that_leave_each_other_no_room_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_machine_allows(Options(**options))


@pytest.mark.parametrize(
    "train, word",
    [({"accumulate": 2}, "accumulate"), ({"integrator": Heun()}, "integrator")],
)
def test_gradients_that_outlive_a_replay_are_refused(train, word):
    with pytest.raises(
        InputError, match=f"`{word}` of the recipe's `train` does not go with {NAME}"
    ):
        check_plan_allows(tiny_plan(train), Options(**REPLAYED))


def test_compiled_parts_do_not_go_with_norms_that_the_processes_share():
    together = Options(compile=True, shard=True, ranks=Ranks(0, 2))
    with pytest.raises(InputError, match="`sync_norms`.* does not go with --compile and --shard"):
        check_plan_allows(tiny_plan({"sync_norms": True}), together)


@pytest.mark.parametrize(
    "train, options, message",
    [
        ({"balance": InverseDirichlet()}, dict(ranks=Ranks(0, 2)), "`balance`.*2 are running"),
        ({"integrator": Heun()}, dict(precision="fp16"), "`integrator`.*neither fp16 nor"),
        ({"integrator": Heun(), "accumulate": 2}, {}, "`integrator`.*nor `accumulate`"),
    ],
)
def test_a_step_of_its_own_kind_needs_one_batch_of_unscaled_gradients(train, options, message):
    with pytest.raises(InputError, match=message):
        check_plan_allows(tiny_plan(train), Options(**options))


def test_every_conflict_is_of_options_that_exist():
    assert {name for conflict in CONFLICTS for name in conflict.options} <= set(flags())


def test_ways_that_go_together_are_not():
    check_machine_allows(Options(**REPLAYED))
    check_plan_allows(tiny_plan(), Options(**REPLAYED))
    check_machine_allows(Options(compile=True, ranks=Ranks(0, 2)))


def test_nothing_is_read_of_a_replay_after_the_next_one(tmp_path, monkeypatch):
    """As CUDA graphs do: one place for what a step gives, lost when the next one begins."""
    places, begun = [], []

    def record(forward, dynamic, mode):
        assert mode == "reduce-overhead"

        def replay(*given):
            loss, sums = forward(*given)
            places.extend((loss.detach(), sums))
            return loss, sums

        return replay

    def begin() -> None:
        begun.append(len(places))
        for place in places:
            place.fill_(float("nan"))
        places.clear()

    monkeypatch.setattr(torch, "compile", record)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    monkeypatch.setattr("dcil_dsl.training.session.check_machine_allows", lambda options: None)
    _, replayed, run = tiny_train(tmp_path / "graphs", compile=True, compile_mode="reduce-overhead")
    _, plain, other = tiny_train(tmp_path / "plain")
    assert begun == [0] + 15 * [2]  # four whole batches in each epoch of four
    torch.testing.assert_close(replayed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    lines = [[json.loads(x) for x in r.metrics.read_text().splitlines()] for r in (run, other)]
    assert [line["losses"] for line in lines[0]] == [line["losses"] for line in lines[1]]
