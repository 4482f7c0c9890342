"""DcilCallback on two processes of the CPU (ddp, gloo): the network of one process."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

pl = needed("lightning.pytorch")
from support.ddp_lightning import fit  # noqa: E402
from support.lightning_runs import text  # noqa: E402

from dcil_dsl.integrations.lightning_fit import refuse_strategy  # noqa: E402

TESTS = Path(__file__).parents[1]


def recipe(score="movement"):
    """In the first epoch the dense path does not run: its own norm has no gradient then."""
    own = text(f"score = {score}\n  penalty = [square(pruned, weight=0.01)]")
    own = own.replace("private BatchNorm1d", "private LayerNorm")
    own = own.replace("loss model(dense)", "loss model(dense) from 1ep")
    return own.replace("temperature=2)", "temperature=2) from 1ep")


def on_two(folder, text, resume=()):
    folder.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    script = str(TESTS / "support" / "ddp_lightning.py")
    done = subprocess.run(
        [sys.executable, script, str(folder), "2", text, *map(str, resume)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [loaded(folder, rank) for rank in (0, 1)]


def loaded(folder, rank=0):
    """The masks of every step, and the network at the end."""
    files = (folder / f"{kind}-{rank}.pt" for kind in ("masks", "net"))
    return [torch.load(file, weights_only=True) for file in files]


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_two_processes_train_the_network_of_one_and_have_its_masks_at_every_step(tmp_path):
    (tmp_path / "one").mkdir()
    fit(tmp_path / "one", 1, recipe())
    masks, net = loaded(tmp_path / "one")
    assert len(masks) == 20 and float((net["net.0.weight"] == 0).double().mean()) == 0.8
    for found, state in on_two(tmp_path / "two", recipe()):
        assert all(equal(*pair) for pair in zip(masks, found, strict=True))
        for name, tensor in net.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-9)


def test_two_processes_resume_to_the_bit_also_with_scores_of_their_own_batches(tmp_path):
    score = recipe("taylor(average=0.9)")
    through = on_two(tmp_path / "a", score)
    resumed = on_two(tmp_path / "b", score, [tmp_path / "a" / "epoch=1.ckpt"])
    for (masks, net), (found, state) in zip(through, resumed, strict=True):
        assert all(equal(*pair) for pair in zip(masks[10:], found, strict=True))
        assert equal(net, state)
    assert equal(through[0][1], through[1][1])


@pytest.mark.parametrize(
    ("strategy", "match"),
    [
        (lambda: pl.strategies.ModelParallelStrategy(), "ModelParallelStrategy"),
        (lambda: pl.strategies.DDPStrategy(model_averaging_period=2), "model_averaging_period"),
    ],
)
def test_a_strategy_by_which_masks_would_differ_is_refused_by_name(strategy, match):
    with pytest.raises(dcil.InputError, match=match):
        refuse_strategy(SimpleNamespace(strategy=strategy()))
