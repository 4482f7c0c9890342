"""Numbers of weights in parts: second runs of a path, wide types, what autocast leaves alone."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.tensor
from test_sharded_rules import ALONE, BOTH, PartsNet, plan_of
from tiny_ranks import on_ranks, plain_plan, rank_train, said
from tiny_run import NUM_CLASSES, cross_entropy, kl
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.plan import plan as p
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.sharding import shard


class PrivateNet(nn.Module):
    """Each path has running statistics and dropout of its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.fc = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.norm(self.conv1(x)).relu()).relu().mean((2, 3)))


def test_activations_recomputed_in_parts_note_statistics_once_and_draw_the_same(tmp_path):
    both_ways = (kl("sparse", "dense", p.Window()), kl("dense", "sparse", p.Window()))
    plan = plain_plan(losses=(cross_entropy("sparse"), cross_entropy("dense"), *both_ways))

    def work(ranks):
        parts = {"shard": True, "checkpoint_activations": True}
        for name, ways in (("whole", {}), ("parts", parts)):
            _, dual = rank_train(tmp_path / name, ranks, plan, PrivateNet, max_steps=3, **ways)
            if ranks.is_first:
                torch.save(dual.state_dict(), tmp_path / f"{name}.pt")

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert_close(tmp_path / "parts.pt", tmp_path / "whole.pt", 1e-4)


class WideNet(PartsNet):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


@pytest.mark.parametrize(
    "statements, mix, precision",
    [
        ("prune convs to 70% { penalty = [norm(kept, 1e-2), norm(pruned, 1e-2)] }", BOTH, "fp32"),
        ("prune convs to 70%", ALONE.replace("VIEW", "soft_threshold()"), "fp32"),
        ("prune convs to 70%", BOTH, "bf16"),  # which leaves float64 as it is
    ],
)
def test_weights_of_float64_in_parts_are_trained_in_float64(tmp_path, statements, mix, precision):
    plan = plan_of(statements, mix, WideNet)
    train = plan.train.model_copy(update={"clip": 0.1})
    plan = plan.model_copy(update={"train": train})

    def work(ranks, **ways):
        name = f"of {ranks.count}"
        ways |= dict(max_steps=4, precision=precision)
        _, dual = rank_train(tmp_path / name, ranks, plan, WideNet, **ways)
        if ranks.is_first:
            torch.save(dual.state_dict(), tmp_path / f"{name}.pt")

    work(Ranks())
    status = on_ranks(tmp_path, 2, lambda ranks: work(ranks, shard=True))
    assert status == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert_close(tmp_path / "of 2.pt", tmp_path / "of 1.pt", 1e-12)


class PlacesNet(nn.Module):
    """A stream that autocast leaves in float32: an embedding, places and a norm of two sizes."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(64, 24)
        self.places = nn.Parameter(torch.randn(64, 24))
        self.norm = nn.LayerNorm((64, 24))
        nn.init.normal_(self.norm.weight)
        self.mlp = nn.Linear(24, 48)
        self.fc = nn.Linear(48, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words((8 * x).abs().clamp(max=63).long().flatten(1)) + self.places
        return self.fc(self.mlp(self.norm(x)).mean(1))


def test_under_autocast_parts_compute_in_the_types_of_one_process(tmp_path):
    def work(ranks):
        torch.manual_seed(0)
        plan = plan_of('prune "mlp" to 70%', BOTH, PlacesNet)
        dual, images = compile_plan(plan, PlacesNet()), torch.randn(3, 1, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            dual.begin_step(0)
            whole = dual(images)
            shard(dual, ranks, torch.device("cpu"))
            parts = dual(images)
        for path, logits in whole.items():
            assert torch.equal(parts[path], logits), path

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)


def assert_close(found, wanted, far: float) -> None:
    found, wanted = (torch.load(path, weights_only=True) for path in (found, wanted))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=far, atol=far, msg=name)
