"""Several processes train the network that one process trains from the same batches."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support.same_runs import assert_equal_runs, checkpoint, lines
from support.tiny_ranks import on_ranks, plain_plan, rank_train, said
from support.tiny_run import TinyNet, cross_entropy, kl, tiny_plan, tiny_train
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training import distributed, step
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.sync_norms import HostSyncedNorm, synced_norms


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    rank_train(folder, Ranks())
    return folder


@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_and_masks_of_several_ranks_are_those_of_one_process(tmp_path, alone, count):
    status = on_ranks(tmp_path, count, lambda ranks: rank_train(tmp_path / "run", ranks))
    assert status == [0] * count, said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_paths_and_losses_that_come_and_go_leave_the_ranks_with_one_process_s_result(
    tmp_path, accumulate
):
    """Dense warm-up, then both paths; a distillation from step 7; parameters without a loss."""
    rows = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0))
    shares = [tuple(p.Shares(kept=k, pruned=q, rest=r) for k, q, r in phase) for phase in rows]
    changes = dict(
        phases=(
            p.Phase(window=p.Window(stop=5), paths=("dense",), shares=shares[0]),
            p.Phase(window=p.Window(start=5), paths=("sparse", "dense"), shares=shares[1]),
        ),
        losses=windowed_losses(),
        num_steps=20 if accumulate == 1 else 12,
        steps_per_epoch=5 if accumulate == 1 else 3,
    )
    plan = plain_plan(train={"accumulate": accumulate}, **changes)
    rank_train(tmp_path / "alone", Ranks(), plan)
    status = on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks, plan))
    assert status == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


def windowed_losses():
    sparse, dense = cross_entropy("sparse"), cross_entropy("dense")
    return (
        sparse.model_copy(update={"window": p.Window(start=5)}),
        dense,
        kl("sparse", "dense", p.Window(start=7)),
    )


class NormNet(TinyNet):
    """Batch norms and nothing random."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Identity()


def test_batch_norms_in_sync_make_several_ranks_one_process_batch_norms_included(tmp_path):
    plan = tiny_plan(train={"sync_norms": True})
    rank_train(tmp_path / "alone", Ranks(), plan, NormNet)
    work = lambda ranks: rank_train(tmp_path / "run", ranks, plan, NormNet)  # noqa: E731
    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_batch_norms_in_sync_compute_in_float32_what_16_bits_are_given_to(tmp_path, precision):
    plan = tiny_plan(train={"sync_norms": True})

    def some_steps(ranks, name="two"):
        rank_train(tmp_path / name, ranks, plan, NormNet, precision=precision, max_steps=5)

    assert on_ranks(tmp_path, 2, some_steps) == [0, 0], said(tmp_path, 0)
    some_steps(Ranks(), "one")
    ours, alone = (lines(tmp_path / name)[-1]["losses"] for name in ("two", "one"))
    assert ours == pytest.approx(alone, rel=0.02)


def test_a_batch_norm_without_running_statistics_takes_those_of_its_batch_in_evaluation():
    norm, x = nn.BatchNorm1d(3, track_running_stats=False).eval(), torch.randn(5, 3)
    expected = norm(x)
    norm.__class__ = HostSyncedNorm
    assert torch.equal(norm(x), expected)


def test_batch_norms_by_rank_are_one_network_when_they_are_evaluated(tmp_path):
    """What is saved is the mean of the ranks' running statistics, and every rank has it."""

    def work(ranks):
        _, dual = rank_train(tmp_path / "run", ranks, tiny_plan(train={"ema": None}), NormNet)
        ranks.any(False)  # all are here, so the first has written
        saved = checkpoint(tmp_path / "run")
        for name, buffer in dual.named_buffers():
            assert torch.equal(buffer, saved[f"model/{name}"]), name

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 1)


def test_a_batch_norm_of_another_class_cannot_be_in_sync_and_is_named(tmp_path):
    class Own(nn.BatchNorm2d):
        pass

    net = nn.Sequential(nn.Conv2d(1, 2, 3), Own(2))
    with pytest.raises(InputError, match="`1` is a .*Own; only PyTorch's own"):
        with synced_norms(net, Ranks(0, 2)):
            pass


def test_modules_in_sync_are_what_they_were_afterwards():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(3))
    before = [dict(module.__dict__) for module in net]
    with synced_norms(net, Ranks(0, 2)):
        assert [type(module) for module in net] == [HostSyncedNorm, HostSyncedNorm]
    assert [type(module) for module in net] == [nn.BatchNorm2d, nn.BatchNorm1d]
    assert [module.__dict__ for module in net] == before


def test_norms_that_will_compute_on_a_gpu_are_pytorchs_own_though_they_lie_on_the_host_yet():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(3, affine=False))
    with synced_norms(net, Ranks(0, 2), torch.device("cuda:1")):
        assert [type(module) for module in net] == [nn.SyncBatchNorm, nn.SyncBatchNorm]
    assert [type(module) for module in net] == [nn.BatchNorm2d, nn.BatchNorm1d]


def test_training_tells_the_norms_in_sync_which_device_it_is_for(tmp_path, monkeypatch):
    told = []

    def enter(dual, ranks, device="cpu"):
        told.append(device)
        raise InterruptedError

    monkeypatch.setattr("dcil_dsl.training.sync_norms.synced_norms", enter)
    with pytest.raises(InterruptedError):
        tiny_train(tmp_path / "run", tiny_plan(train={"sync_norms": True}), device="cuda:1")
    assert told == ["cuda:1"]


def test_ranks_may_compute_activations_again(tmp_path):
    def both(ranks):
        rank_train(tmp_path / "plain", ranks, max_steps=8)
        rank_train(tmp_path / "again", ranks, max_steps=8, checkpoint_activations=True)

    assert on_ranks(tmp_path, 2, both) == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "again", tmp_path / "plain")


def test_means_are_taken_in_buckets_of_any_types_and_layouts(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 100)

    def work(ranks):
        made = [
            torch.full((2, 3, 4, 4), 1.0 + ranks.rank).to(memory_format=torch.channels_last),
            torch.arange(6.0).reshape(2, 3).t() * (1 + ranks.rank),
            torch.tensor(3.0 - 2 * ranks.rank, dtype=torch.float64),
            *(torch.full((5,), float(n + ranks.rank)) for n in range(9)),
        ]
        sums = []
        before, dist.all_reduce = dist.all_reduce, lambda x: (sums.append(x.nbytes), before(x))
        ranks.average(made)
        expected = [
            torch.full((2, 3, 4, 4), 1.5),
            torch.arange(6.0).reshape(2, 3).t() * 1.5,
            torch.tensor(2.0, dtype=torch.float64),
            *(torch.full((5,), n + 0.5) for n in range(9)),
        ]
        for tensor, mean in zip(made, expected, strict=True):
            torch.testing.assert_close(tensor, mean)
        # in turn: the first alone, then 24 bytes and three of 20, five of 20, one; a double
        assert sorted(sums) == [8, 20, 84, 100, 384]

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_path_of_every_third_step_leaves_the_ranks_with_one_process_s_result(
    tmp_path, monkeypatch, accumulate
):
    """Without a wrapper for each stretch of steps, which would be built at nearly every one."""
    both, third = plain_plan().phases[0], p.Window(every=3)
    none, some = (p.Shares(kept=x, pruned=0.0, rest=x) for x in (0.0, 1.0))
    plan = plain_plan(
        train={"accumulate": accumulate},
        phases=(
            both.model_copy(update={"window": third}),
            p.Phase(window=p.Window(every=3, others=True), paths=("sparse",), shares=(some, none)),
        ),
        losses=(
            cross_entropy("sparse"),
            cross_entropy("dense").model_copy(update={"window": third}),
        ),
        num_steps=20 if accumulate == 1 else 12,
        steps_per_epoch=5 if accumulate == 1 else 3,
    )
    rank_train(tmp_path / "alone", Ranks(), plan)
    monkeypatch.setattr(step, "DistributedDataParallel", None)
    status = on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks, plan))
    assert status == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")
