"""A rank that fails ends them all with one clear text; what was killed goes on as if it had not."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from support.same_runs import assert_same
from support.tiny_ranks import RankData, on_ranks, plain_plan, rank_train, said

from dcil_dsl.cli.errors import MISUSED, WRONG
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training import distributed, session, trainer
from dcil_dsl.training.distributed import MasksDiffer, Ranks, compare_fingerprints, mask_fingerprint


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert on_ranks(folder, 2, lambda ranks: rank_train(folder / "run", ranks)) == [0, 0]
    return folder / "run"


@pytest.mark.parametrize("rank, step", [(1, 8), (0, 13)])
def test_a_rank_that_is_killed_ends_the_other_and_the_job_resumes_to_the_same_bits(
    tmp_path, straight, rank, step
):
    def killed(ranks):
        def die(batch):
            if (ranks.rank, batch) == (rank, step):
                os.kill(os.getpid(), signal.SIGKILL)

        rank_train(tmp_path / "run", ranks, before=die)

    status = on_ranks(tmp_path, 2, killed)
    assert status[rank] == -signal.SIGKILL and status[1 - rank] == MISUSED
    assert "another process of this job is gone" in said(tmp_path, 1 - rank)
    assert on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks)) == [0, 0]
    assert_same(tmp_path / "run", straight)


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(tmp_path, straight):
    def asked_to_stop(ranks):
        def ask(batch):
            if (ranks.rank, batch) == (1, 5):  # an epoch's first: what was merged is what it was
                os.kill(os.getpid(), signal.SIGTERM)

        result, _ = rank_train(tmp_path / "run", ranks, before=ask)
        assert result.interrupted and result.step == 6

    assert on_ranks(tmp_path, 2, asked_to_stop) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks)) == [0, 0]
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize(
    "count, changes",
    [
        (3, {}),
        (2, dict(train={"accumulate": 2}, steps_per_epoch=3, num_steps=12)),
    ],
)
def test_what_more_ranks_or_batches_of_a_step_add_up_has_the_same_bits_after_a_break(
    tmp_path, count, changes
):
    """Although buckets of gradients are laid out anew after the first step of each start."""
    plan = plain_plan(**changes)

    def killed(ranks):
        def die(batch):
            if ranks.rank == 1 and batch == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        rank_train(tmp_path / "run", ranks, plan, before=die)

    def to_the_end(name):
        return on_ranks(tmp_path, count, lambda r: rank_train(tmp_path / name, r, plan))

    assert to_the_end("straight") == [0] * count, said(tmp_path, 0)
    assert on_ranks(tmp_path, count, killed)[1] == -signal.SIGKILL
    assert to_the_end("run") == [0] * count, said(tmp_path, 0)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_a_run_of_two_ranks_resumes_in_one_process(tmp_path, straight):
    def some_steps(ranks):
        rank_train(tmp_path / "run", ranks, max_steps=10)

    assert on_ranks(tmp_path, 2, some_steps) == [0, 0]
    result, _ = rank_train(tmp_path / "run", Ranks())
    assert result.step == 20 and not result.interrupted


def test_a_mask_that_differs_on_one_rank_stops_all_and_is_named_once(tmp_path):
    def tampered(ranks):
        note = session.note_masks

        def tamper(now):
            if (ranks.rank, now.state.position.step) == (1, 9):
                now.dual.masks["conv2.weight"][0, 0, 0, 0].logical_not_()
            note(now)

        session.note_masks = tamper  # in this forked process alone
        rank_train(tmp_path / "run", ranks)

    assert on_ranks(tmp_path, 2, tampered) == [WRONG, WRONG]
    assert "at step 9 the ranks do not have the same masks" in said(tmp_path, 0)
    assert "equal weights: `conv2.weight` on rank 1 differs" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""


def test_an_error_of_one_rank_is_reported_by_it_alone(tmp_path):
    def unreadable(ranks):
        def fail(batch):
            if (ranks.rank, batch) == (1, 3):
                raise InputError("n01440764/18.JPEG is no image", help="delete it")

        rank_train(tmp_path / "run", ranks, before=fail)

    assert on_ranks(tmp_path, 2, unreadable) == [MISUSED, MISUSED]
    assert said(tmp_path, 1) == "rank 1:\nerror: n01440764/18.JPEG is no image\n  delete it\n"
    assert said(tmp_path, 0) == ""


def test_an_error_of_all_ranks_is_reported_by_the_first(tmp_path):
    def diverges(ranks):
        def spoil(batch):
            if batch == 2:
                raise InputError("the same everywhere")

        rank_train(tmp_path / "run", ranks, before=spoil)

    assert on_ranks(tmp_path, 2, diverges) == [MISUSED, MISUSED]
    assert said(tmp_path, 0) == "error: the same everywhere\n" and said(tmp_path, 1) == ""


def test_a_loss_that_is_no_number_on_one_rank_ends_all_at_that_step(tmp_path):
    def diverges(ranks):
        begin = trainer.begin_batch

        def spoiled(now, *more):
            batch = begin(now, *more)
            if ranks.rank == 1 and batch.step == 4:
                return replace(batch, inputs=batch.inputs.map(lambda x: x * float("nan")))
            return batch

        trainer.begin_batch = spoiled
        rank_train(tmp_path / "run", ranks)

    assert on_ranks(tmp_path, 2, diverges) == [MISUSED, MISUSED]
    assert "is not a finite number at step 4 (epoch 1)" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_ends_the_other_with_words_though_it_holds_the_store(
    tmp_path, monkeypatch, stopped
):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=4))

    def stops(ranks):
        (tmp_path / f"pid.{ranks.rank}").write_text(str(os.getpid()))

        def stop(batch):
            if (ranks.rank, batch) == (stopped, 6):
                (tmp_path / "stopped").touch()
                os.kill(os.getpid(), signal.SIGSTOP)

        rank_train(tmp_path / "run", ranks, before=stop)

    ended_alone = []

    def end_the_stopped_one():
        until = time.monotonic() + 120
        while not (tmp_path / "stopped").exists():
            if time.monotonic() > until:  # the ranks ended before: the statuses say how
                return
            time.sleep(0.05)
        other, until = int((tmp_path / f"pid.{1 - stopped}").read_text()), time.monotonic() + 25
        while not ended_alone and time.monotonic() < until:
            time.sleep(0.05)
            try:
                os.kill(other, 0)
            except ProcessLookupError:
                ended_alone.append(True)
        os.kill(int((tmp_path / f"pid.{stopped}").read_text()), signal.SIGKILL)

    ending = threading.Thread(target=end_the_stopped_one)
    ending.start()
    status = on_ranks(tmp_path, 2, stops)
    ending.join()
    assert ended_alone and status[stopped] == -signal.SIGKILL and status[1 - stopped] == MISUSED
    assert "another process of this job is gone" in said(tmp_path, 1 - stopped)


# -- fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_every_single_bit_and_with_the_order():
    mask = torch.rand(37, generator=torch.Generator().manual_seed(0)) < 0.5
    flipped = [mask.clone() for _ in mask]
    for place, other in enumerate(flipped):
        other[place] = ~other[place]
    prints = {int(mask_fingerprint(m)) for m in (mask, *flipped, mask.flip(0), mask.roll(8))}
    assert len(prints) == 37 + 3


def test_a_fingerprint_is_of_the_bits_alone():
    mask = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    laid_out = mask.contiguous(memory_format=torch.channels_last)
    assert (
        int(mask_fingerprint(mask))
        == int(mask_fingerprint(laid_out))
        == int(mask_fingerprint(mask.clone()))
    )


def test_the_layers_and_the_ranks_that_differ_are_named():
    prints = torch.tensor([[7, 1, 3], [7, 2, 3], [7, 1, 4]])
    with pytest.raises(MasksDiffer, match=r"step 16 .*: `b` on rank 1; `c` on rank 2 differs"):
        compare_fingerprints(["a", "b", "c"], prints, 16)
    compare_fingerprints(["a", "b", "c"], prints[:1].expand(3, 3), 16)


def test_a_loss_that_is_not_finite_on_one_rank_takes_all_of_them_back(tmp_path):
    """As the same ranks go back again after a kill: to the same bits."""

    def poisoned(ranks, folder, killed_at=None):
        def before(batch):
            if (ranks.rank, batch) == (0, killed_at):
                os.kill(os.getpid(), signal.SIGKILL)

        epoch, times = RankData.epoch, {(1, 12): 1}

        def spoiled(self, number, start=0):
            for batch, (images, labels) in enumerate(epoch(self, number, start), start):
                place = (ranks.rank, number * self.num_batches + batch)
                if self.is_training and times.get(place, 0):
                    times[place] -= 1
                    images = images * float("nan")
                yield images, labels

        RankData.epoch = spoiled  # in this forked process alone
        result, _ = rank_train(folder, ranks, before=before, on_nan="rewind")
        assert [(back["step"], back["to"]) for back in result.rewinds] == [(12, 10)]

    one, other = tmp_path / "one", tmp_path / "other"
    assert on_ranks(tmp_path, 2, lambda r: poisoned(r, one)) == [0, 0], said(tmp_path, 0)
    assert on_ranks(tmp_path, 2, lambda r: poisoned(r, other, 13))[0] == -signal.SIGKILL
    assert on_ranks(tmp_path, 2, lambda r: poisoned(r, other)) == [0, 0], said(tmp_path, 0)
    assert_same(one, other)
