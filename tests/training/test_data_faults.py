"""Training whose data come late, or not at all."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.same_runs import assert_same
from support.tiny_run import NUM_EPOCHS, STEPS_PER_EPOCH, TinyData, tiny_train

from dcil_dsl.diagnostics import InputError


def late(batch: int) -> None:
    time.sleep(0.005)


def test_the_time_that_steps_wait_for_data_is_reported_by_epoch_and_of_the_whole(tmp_path):
    result, _, run = tiny_train(tmp_path / "run", data=TinyData(before=late))
    lines = run.read_metrics()
    assert all(STEPS_PER_EPOCH * 0.005 <= line["data_seconds"] < line["seconds"] for line in lines)
    assert lines[0]["data_share"] == lines[0]["data_seconds"] / lines[0]["seconds"]
    assert result.data_seconds == pytest.approx(sum(line["data_seconds"] for line in lines))
    assert NUM_EPOCHS * STEPS_PER_EPOCH * 0.005 <= result.data_seconds <= result.seconds
    assert 0 < result.data_share < 1


def test_the_time_waited_before_a_resume_counts_too(tmp_path):
    first, _, _ = tiny_train(tmp_path / "run", data=TinyData(before=late), max_steps=8)
    second, _, _ = tiny_train(tmp_path / "run", resume=True)
    assert second.data_seconds > first.data_seconds > 8 * 0.005


@pytest.mark.parametrize("batch", [0, 8])
def test_where_no_batch_comes_the_steps_so_far_are_saved_and_the_run_resumes(tmp_path, batch):
    def fails(number: int) -> None:
        if number == batch:
            raise InputError("cannot read the image x.JPEG", "replace it")

    tiny_train(tmp_path / "straight")
    with pytest.raises(InputError, match="x.JPEG") as error:
        tiny_train(tmp_path / "run", data=TinyData(before=fails))
    assert error.value.help == f"replace it\n{batch} steps are saved; --resume continues from there"
    result, _, _ = tiny_train(tmp_path / "run", resume=True)
    assert result.step == NUM_EPOCHS * STEPS_PER_EPOCH
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_run_that_is_stopped_asks_for_no_held_out_batch(tmp_path):
    """The signal may have gone to the processes that read them, too."""

    def stop(batch: int) -> None:
        if batch == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    def fails(batch: int) -> None:
        raise InputError("a worker was killed")

    val = TinyData(31, seed=1)
    tiny_train(tmp_path / "straight", val=val)
    tiny_train(tmp_path / "run", val=val, max_steps=5)
    val.before = fails
    result, _, _ = tiny_train(tmp_path / "run", data=TinyData(before=stop), val=val, resume=True)
    assert result.interrupted and result.step == 8
    val.before = lambda batch: None
    tiny_train(tmp_path / "run", val=val, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
