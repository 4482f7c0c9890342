"""The main job on several processes: one run folder, one text, the same exported network."""

from __future__ import annotations

import json

import pytest
from support.tiny_job import NET, RECIPE
from support.tiny_ranks import on_ranks, said

import dcil_dsl as dcil


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def job(folder, **more):
    return dcil.train(
        folder / "tiny.prune",
        f"{folder}/net.py:Net",
        "synthetic",
        device="cpu",
        out=folder / "run",
        **more,
    )


def test_the_first_rank_writes_proves_and_tells_and_the_others_know_where(folder):
    def work(ranks):
        notes = []
        run = job(folder, note=notes.append, overrides={"train.accumulate": "2"})
        assert run.path == folder / "run" and run.result.step == 8
        assert run.is_first == (run.model is not None) == bool(run.claims) == ranks.is_first
        assert bool(notes) == ranks.is_first  # another model than the recipe was written for

    assert on_ranks(folder, 2, work) == [0, 0], said(folder, 0) + said(folder, 1)
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["complete"] and report["result"]["num_kept"] == 504
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_batch_smaller_than_the_ranks_are_many_is_refused_by_all(folder):
    def work(ranks):
        with pytest.raises(dcil.InputError, match="a batch of 1 example has no part for each"):
            job(folder, overrides={"data.batch_size": "1"})

    assert on_ranks(folder, 2, work) == [0, 0], said(folder, 0)


def test_a_folder_in_the_way_is_reported_by_the_first_and_known_to_all(folder):
    (folder / "run").mkdir()
    (folder / "run" / "something").touch()

    def work(ranks):
        with pytest.raises(dcil.InputError, match="is not empty"):
            job(folder)

    assert on_ranks(folder, 2, work) == [0, 0], said(folder, 0)


def test_parts_are_refused_where_there_is_one_process(folder):
    with pytest.raises(dcil.InputError, match="--shard: there is one process"):
        job(folder, shard=True)
