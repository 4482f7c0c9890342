"""A run that is resumed says what its folder has lost, and whether the threads differ."""

import json

import pytest
import torch
from support.tiny_job import NET, RECIPE, call, job

LONG = RECIPE.replace("epochs    = 2ep", "epochs    = 5ep")


@pytest.fixture
def folder(tmp_path):
    """A run of which 4 of 5 epochs are done."""
    (tmp_path / "tiny.prune").write_text(LONG)
    (tmp_path / "net.py").write_text(NET)
    assert call(*job(tmp_path), "--out", tmp_path / "run", "--max-steps", "32", "--quiet") == 0
    return tmp_path


def resumed(folder, capsys):
    capsys.readouterr()
    assert call(*job(folder), "--out", folder / "run", "--resume") == 0
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def test_lines_that_were_deleted_are_named_by_their_epochs(folder, capsys):
    file = folder / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[2:3]))
    assert "metrics.jsonl has no line of epochs 1-2, 4" in resumed(folder, capsys)
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [3, 5]


def test_a_file_of_metrics_cut_in_its_last_line_is_named_too(folder, capsys):
    file = folder / "run" / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    assert "metrics.jsonl has no line of epoch 4" in resumed(folder, capsys)


def test_a_missing_start_is_named(folder, capsys):
    (folder / "run" / "start.json").unlink()
    assert "start.json is missing" in resumed(folder, capsys)


def test_a_whole_folder_gives_no_note(folder, capsys):
    said = resumed(folder, capsys)
    assert "missing" not in said and "no line of" not in said and "threads" not in said


def test_another_number_of_threads_is_a_note(folder, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        said = resumed(folder, capsys)
    finally:
        torch.set_num_threads(before)
    assert f"threads was {before} when the run was started, and is {before + 1} now" in said
