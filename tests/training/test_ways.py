"""Which ways of making a step go together, and that a replayed step is read before the next."""

from __future__ import annotations

import json

import pytest
import torch
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.training import Options
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.ways import check_plan_ways, check_ways
from dcil_dsl.words.integrators import Heun

REPLAYED = dict(compile=True, compile_mode="reduce-overhead", device="cuda")
NAME = "--compile-mode reduce-overhead"


@pytest.mark.parametrize(
    "options, message",
    [
        (REPLAYED | {"compile": False}, f"{NAME} replays what --compile has made"),
        (REPLAYED | {"device": "cpu"}, "only a CUDA device has graphs"),
        (REPLAYED | {"ranks": Ranks(0, 2)}, f"{NAME} is for one process, and there are 2"),
        (REPLAYED | {"compile_mode": "max"}, "there is no --compile-mode max\ndefault or reduce"),
        (dict(compile=True, checkpoint_activations=True), "does not go with --compile"),
    ],
)
def test_ways_that_leave_each_other_no_room_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_ways(Options(**options))


@pytest.mark.parametrize(
    "train, word",
    [({"accumulate": 2}, "accumulate"), ({"integrator": Heun()}, "integrator")],
)
def test_gradients_that_outlive_a_replay_are_refused(train, word):
    with pytest.raises(InputError, match=f"does not go with `{word}` of the recipe's `train`"):
        check_plan_ways(tiny_plan(train), Options(**REPLAYED))


def test_compiled_parts_do_not_go_with_norms_that_the_processes_share():
    together = Options(compile=True, shard=True, ranks=Ranks(0, 2))
    with pytest.raises(InputError, match="`sync_norms`.*--compile and --shard together"):
        check_plan_ways(tiny_plan({"sync_norms": True}), together)


def test_ways_that_go_together_are_not():
    check_ways(Options(**REPLAYED))
    check_plan_ways(tiny_plan(), Options(**REPLAYED))
    check_ways(Options(compile=True, ranks=Ranks(0, 2)))


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
    monkeypatch.setattr("dcil_dsl.training.session.check_ways", lambda options: None)
    _, replayed, run = tiny_train(tmp_path / "graphs", compile=True, compile_mode="reduce-overhead")
    _, plain, other = tiny_train(tmp_path / "plain")
    assert begun == [0] + 15 * [2]  # four whole batches in each epoch of four
    torch.testing.assert_close(replayed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    lines = [[json.loads(x) for x in r.metrics.read_text().splitlines()] for r in (run, other)]
    assert [line["losses"] for line in lines[0]] == [line["losses"] for line in lines[1]]
