"""Ranks that were not started alike end before anything is written, and each says the same."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from support.tiny_job import NET, RECIPE
from support.tiny_ranks import on_ranks, said

import dcil_dsl as dcil
from dcil_dsl.cli.errors import MISUSED
from dcil_dsl.data import open_dataset
from dcil_dsl.jobs import train as main_job
from dcil_dsl.training.differences import value_differences
from dcil_dsl.training.distributed import Ranks

OTHER_NET = NET.replace("nn.ReLU()", "nn.GELU()")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "net.py").write_text(OTHER_NET)
    (tmp_path / "other" / "tiny.prune").write_text(RECIPE.replace("from 1ep", "from 0ep"))
    return tmp_path


def job(folder, recipe="tiny.prune", model="net.py", data="synthetic", **more):
    return dcil.train(
        folder / recipe,
        f"{folder}/{model}:Net",
        data,
        device="cpu",
        **({"out": folder / "run"} | more),
    )


def ended(folder, one, other, count=2):
    """What the first of the ranks says where the last was started with `other`."""
    last = count - 1

    def work(ranks):
        job(folder, **(other if ranks.rank == last else one))

    assert on_ranks(folder, count, work) == [MISUSED] * count, said(folder, 0) + said(folder, 1)
    assert said(folder, last) == ""
    return said(folder, 0)


DIFFERENT = {
    "train.seed: 0 on rank 0, 5 on rank 1": dict(seed=5),
    'train.precision: "fp32" on rank 0, "bf16" on rank 1': dict(precision="bf16"),
    "data.image_size: 32 on rank 0, 16 on rank 1": dict(overrides={"data.image_size": "16"}),
    "train.num_epochs: 2 on rank 0, 3 on rank 1": dict(overrides={"train.epochs": "3ep"}),
    "losses[2].window.start: 8 on rank 0, 0 on rank 1": dict(recipe="other/tiny.prune"),
    "model - ": dict(model="other/net.py"),
    "--max-steps: none on rank 0, 3 on rank 1": dict(max_steps=3),
    "--evaluate-every: 1 on rank 0, 2 on rank 1": dict(evaluate_every=2),
    "--shard: false on rank 0, true on rank 1": dict(shard=True),
    '--on-nan: "stop" on rank 0, "rewind" on rank 1': dict(on_nan="rewind"),
    '--on-bad-image: "stop" on rank 0, "skip" on rank 1': dict(on_bad_image="skip"),
    "--checkpoint-activations: false on rank 0, true": dict(checkpoint_activations=True),
}


@pytest.mark.parametrize("told, other", DIFFERENT.items(), ids=list(DIFFERENT))
def test_what_one_rank_was_given_otherwise_is_reported_with_both_values(folder, told, other):
    text = ended(folder, {}, other)
    assert "not started alike: rank 1 and rank 0 differ" in text and told in text
    assert text.endswith("give every process the same command\n")
    assert not (folder / "run").exists()


def test_another_folder_or_other_data_on_one_rank_are_reported(folder):
    text = ended(folder, {}, {"out": folder / "elsewhere"})
    assert f'--out: "{folder}/run" on rank 0, "{folder}/elsewhere" on rank 1' in text

    data = open_dataset("synthetic")
    images = data.train.images.clone()
    images[7] ^= 1
    other = replace(data, train=replace(data.train, images=images))
    assert 'train: "images of ' in ended(folder, {"data": data}, {"data": other})
    assert not (folder / "run").exists() and not (folder / "elsewhere").exists()


def test_of_three_ranks_the_one_that_differs_is_named(folder):
    text = ended(folder, {}, {"seed": 1}, count=3)
    assert "rank 2 and rank 0 differ" in text and "train.seed: 0 on rank 0, 1 on rank 2" in text


def test_a_rank_that_resumes_among_others_that_do_not_is_reported(folder):
    job(folder, max_steps=2)
    before = {file: file.stat().st_mtime_ns for file in (folder / "run").rglob("*")}
    for one, other in ({}, {"resume": True}), ({"resume": True}, {}):
        assert "--resume: " in ended(folder, one, other)
    assert {file: file.stat().st_mtime_ns for file in (folder / "run").rglob("*")} == before


def test_a_rank_that_resumes_a_run_that_is_missing_says_so(folder):
    def work(ranks):
        job(folder, resume=ranks.rank == 1)

    assert on_ranks(folder, 2, work) == [MISUSED, MISUSED]
    assert "run does not exist" in said(folder, 1) and said(folder, 0) == ""


def test_what_belongs_to_a_machine_may_differ(folder):
    def work(ranks):
        os.environ["DCIL_DATA"] = str(folder / str(ranks.rank))
        job(folder, workers=ranks.rank, quiet=ranks.rank == 1, max_steps=2)

    assert on_ranks(folder, 2, work) == [0, 0], said(folder, 0) + said(folder, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_before_the_exchange_ends_the_other(folder, rank):
    def work(ranks):
        if ranks.rank == rank:  # in this forked process alone
            main_job.check_alike = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        job(folder)

    status = on_ranks(folder, 2, work)
    assert status[rank] == -signal.SIGKILL and status[1 - rank] == MISUSED
    assert "another process of this job is gone" in said(folder, 1 - rank)


def test_one_process_exchanges_nothing():
    assert Ranks().find_other("x") is None


def test_differences_have_the_name_of_every_level():
    one, other = {"a": {"b": [1, 2]}, "c": None}, {"a": {"b": [1, 3]}, "c": True}
    assert value_differences(one, other, "here", "there") == [
        "a.b[1]: 2 here, 3 there",
        "c: none here, true there",
    ]
