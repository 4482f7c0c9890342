"""A run that was ended anywhere and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.in_steps import one_budget
from support.same_runs import assert_same, contents
from support.tiny_run import STEPS_PER_EPOCH, TinyData, tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.optimizers import AdamW

CASES = [
    *("kill:0", "kill:3", "kill:5", "kill:8", "kill:14", "kill:19"),
    *("term:0", "term:6", "term:9", "term:19", "evaluate:0", "evaluate:6", "evaluate:15"),
    *("write:10", "write:12", "write:13", "write:14", "write:15", "write:18", "write:21"),
]
NUM_KILLS = 30
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All the cases, made by one program, for torch takes long to import."""
    root = tmp_path_factory.mktemp("runs")
    program = [sys.executable, "-m", "support.tiny_run", str(root)]
    program += [*CASES, f"loop:{NUM_KILLS}"]
    folders = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(folders)
    done = subprocess.run(
        program, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", CASES)
def test_a_run_ended_anywhere_and_resumed_equals_the_straight_run(runs, case):
    assert_same(runs / case.replace(":", ""), runs / "straight")


def test_runs_killed_at_random_moments_again_and_again_end_as_the_straight_run(runs):
    """Weights, masks, momentum, averages, scores, sums, metrics: all that contents() compares."""
    kills = json.loads((runs / "kills.json").read_text())
    assert len(kills) >= NUM_KILLS and {kind for _, kind, _ in kills} == {"time", "file"}
    assert contents(runs / "scored")[0]["model/conv1.weight_score"].any()
    for name in dict.fromkeys(name for name, _, _ in kills):
        assert_same(runs / name, runs / "scored")


def test_the_straight_run_holds_weights_masks_momentum_and_averages(runs):
    tensors, position, lines = contents(runs / "straight")
    assert position["step"] == 20 and position["epoch"] == 4 and position["batch"] == 0
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for name in (
        "model/conv1.weight",
        "model/conv1.weight_mask",
        "model/fc__dense.weight",
        "optimizer/fc__dense.weight/momentum_buffer",
        "average/bn2.running_var",
    ):
        assert name in tensors


def test_a_run_cut_short_by_max_steps_resumes_to_the_same_end(tmp_path):
    tiny_train(tmp_path / "straight")
    short, _, _ = tiny_train(tmp_path / "run", max_steps=8)
    assert short.step == 8 and not short.interrupted and short.accuracies
    tiny_train(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_resuming_a_finished_run_only_reports(tmp_path):
    done, dual, run = tiny_train(tmp_path / "run")
    before = run.checkpoint.read_bytes(), run.metrics.read_bytes()
    again, resumed, _ = tiny_train(tmp_path / "run", resume=True)
    assert (again.step, again.accuracies) == (done.step, done.accuracies)
    assert (run.checkpoint.read_bytes(), run.metrics.read_bytes()) == before
    weights, others = dual.state_dict(), resumed.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def test_adamw_resumes_bit_for_bit(tmp_path):
    plan = tiny_plan(train={"optimizer": AdamW(lr=0.01)})
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=8)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_second_signal_is_not_swallowed(tmp_path):
    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), 2)
            os.kill(os.getpid(), 2)

    # What a shell puts into the background ignores it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            tiny_train(tmp_path / "run", data=TinyData(before=twice))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_sighup_stops_a_run_with_a_checkpoint_and_not_where_it_is_ignored(tmp_path, handler):
    """A terminal that goes away sends it twice, and a system that ends then sends SIGTERM."""

    def hang_up(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            if handler == signal.SIG_DFL:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, handler)
    try:
        result, _, _ = tiny_train(tmp_path / "run", data=TinyData(before=hang_up))
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
    if handler == signal.SIG_IGN:
        assert not result.interrupted
        return
    assert result.interrupted and result.step == 3
    tiny_train(tmp_path / "run", resume=True)
    tiny_train(tmp_path / "straight")
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_resume_refuses_another_plan_and_names_the_field(tmp_path):
    tiny_train(tmp_path / "run", max_steps=STEPS_PER_EPOCH)
    with pytest.raises(InputError) as error:
        tiny_train(tmp_path / "run", tiny_plan(group={"target": one_budget(0.7)}), resume=True)
    assert error.value.help.splitlines()[0] == "groups[0].target.sparsity: 0.8 in the run, 0.7 now"
