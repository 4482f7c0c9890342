"""A loss that is not finite: what is said, what stays, and how a run goes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from support.in_steps import steps
from support.same_runs import assert_same, contents, set_position
from support.tiny_run import TinyData, tiny_plan, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.training import session, trainer
from dcil_dsl.training.checkpoint import read_file
from dcil_dsl.words.optimizers import AdamW
from dcil_dsl.words.rates import Cosine


class Poisoned(TinyData):
    """Batches that hold a NaN, by their number in the run, each as often as it is said to."""

    def __init__(self, times: dict[int, int], value=float("nan"), before=lambda batch: None):
        super().__init__(before=before)
        self.times, self.value = dict(times), value

    def epoch(self, epoch: int, start: int = 0):
        for batch, (images, labels) in enumerate(super().epoch(epoch, start), start):
            number = epoch * self.num_batches + batch
            if self.times.get(number, 0) > 0:
                self.times[number] -= 1
                images = images.index_fill(0, torch.tensor([0]), self.value)
            yield images, labels


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoint" / "last.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_and_term_are_named_and_the_good_checkpoint_stays(tmp_path, value):
    tiny_train(tmp_path / "good", max_steps=10)
    with pytest.raises(InputError) as error:
        tiny_train(tmp_path / "run", data=Poisoned({12: 1}, value))
    assert error.value.message == (
        "the loss `cross_entropy(dense)` is not a finite number at step 12 (epoch 3)"
    )
    assert "the checkpoint of step 10 stays; --resume --on-nan rewind" in error.value.help
    assert_same(tmp_path / "run", tmp_path / "good")


def test_the_first_step_is_named_where_losses_are_read_late(tmp_path, monkeypatch):
    """As on a GPU, which is asked every few steps: here at the end of the epoch alone."""
    monkeypatch.setattr(session, "show_step", lambda now: None)
    with pytest.raises(InputError, match=r"`cross_entropy\(dense\)` is .* at step 11 \(epoch 3\)"):
        tiny_train(tmp_path / "run", data=Poisoned({11: 1}))


def test_weights_that_are_not_finite_under_finite_losses_are_not_saved(tmp_path, monkeypatch):
    tiny_train(tmp_path / "good", max_steps=10)

    def spoil(now) -> None:  # after the last step of the third epoch
        if now.state.position.step == 15:
            now.dual.get_parameter("conv2.weight").data[0, 0, 0, 0] = float("inf")

    monkeypatch.setattr(trainer, "merge_ranks", spoil)
    with pytest.raises(InputError, match="the weight `conv2.weight` is not .* at step 14 "):
        tiny_train(tmp_path / "run")
    saved, good = read_file(checkpoint(tmp_path / "run")), contents(tmp_path / "good")
    assert all(torch.equal(tensor, good[0][name]) for name, tensor in saved[0].items())


def test_going_back_takes_the_last_epoch_again_with_half_the_rate(tmp_path):
    plan = tiny_plan(train={"ema": None})
    result, dual, run = tiny_train(tmp_path / "run", plan, Poisoned({12: 1}), on_nan="rewind")
    back = {"step": 12, "what": "loss `cross_entropy(dense)`", "to": 10}
    assert result.rewinds == (back,)
    lines = run.read_metrics()
    assert [line["rewinds"] for line in lines] == [0, 0, 1, 1]
    rate = plan.lr_at(14)
    assert lines[2]["lr"] == rate / 2 and result.step == 20

    # Written out: two epochs, then the rest of a run whose rates are half of the plan's.
    tiny_train(tmp_path / "half", plan, max_steps=10)
    set_position(checkpoint(tmp_path / "half"), rewinds=[back])
    tiny_train(tmp_path / "half", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "half")


def test_before_the_first_checkpoint_a_run_begins_again(tmp_path):
    result, _, run = tiny_train(tmp_path / "run", data=Poisoned({3: 1}), on_nan="rewind")
    assert result.rewinds[0]["to"] == 0 and result.step == 20
    assert [line["rewinds"] for line in run.read_metrics()] == [1, 1, 1, 1]


def test_adam_forgets_the_moments_of_what_it_goes_back_over(tmp_path):
    plan = tiny_plan(train={"optimizer": AdamW(lr=0.01)})
    _, dual, _ = tiny_train(tmp_path / "run", plan, Poisoned({3: 1}), on_nan="rewind")
    rate = Cosine(warmup=steps(4), warmup_from=0.01)  # 0.02 in the plan
    slow = tiny_plan(train={"optimizer": AdamW(lr=0.005), "rate": rate})
    _, other, _ = tiny_train(tmp_path / "slow", slow)
    weights, others = dual.state_dict(), other.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def test_it_goes_back_three_times_and_then_stops(tmp_path):
    with pytest.raises(InputError, match="at step 7 ") as error:
        tiny_train(tmp_path / "run", data=Poisoned({7: 4}), on_nan="rewind")
    assert error.value.help.startswith("went back 3 times, to 0.125 of the recipe's rate; lower")
    result, _, _ = tiny_train(tmp_path / "other", data=Poisoned({7: 3}), on_nan="rewind")
    assert [back["to"] for back in result.rewinds] == [5, 5, 5]


@pytest.mark.parametrize("place", [6, 8, 11, 13, 17])
def test_a_run_that_is_interrupted_goes_back_to_where_any_other_does(tmp_path, place):
    """Also from a checkpoint in the middle of an epoch, before and after it went back."""
    times = {8: 1, 13: 2}
    tiny_train(tmp_path / "straight", data=Poisoned(times), on_nan="rewind")
    data, is_sent = Poisoned(times), []

    def end(number: int) -> None:
        if number == place and not is_sent:
            is_sent.append(os.kill(os.getpid(), signal.SIGTERM))

    data.before = end
    first, _, _ = tiny_train(tmp_path / "run", data=data, on_nan="rewind")
    assert first.interrupted
    data.before = lambda number: None
    result, _, _ = tiny_train(tmp_path / "run", data=data, on_nan="rewind", resume=True)
    assert len(result.rewinds) == 3
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_stopped_run_is_resumed_by_going_back(tmp_path):
    with pytest.raises(InputError, match="at step 12"):
        tiny_train(tmp_path / "run", data=Poisoned({12: 1}))
    result, _, _ = tiny_train(
        tmp_path / "run", data=Poisoned({12: 1}), resume=True, on_nan="rewind"
    )
    tiny_train(tmp_path / "straight", data=Poisoned({12: 1}), on_nan="rewind")
    assert len(result.rewinds) == 1
    assert_same(tmp_path / "run", tmp_path / "straight")
