"""A run that --max-steps cut short says that its sparsity is the one so far."""

import pytest
from support.tiny_job import NET, RECIPE, call, job, own

import dcil_dsl as dcil

LONG = RECIPE.replace("linear(0ep..1ep)", "linear(0ep..90% run)")
SAYS = "tiny.prune:14: 38.5714% is asked as scheduled at step 7 of 16; the recipe asks 90%"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    (folder / "tiny.prune").write_text(LONG)
    (folder / "net.py").write_text(NET)
    assert call(*job(folder), "--out", folder / "run", "--max-steps", "7", "--quiet") == 0
    return folder


def test_verify_says_what_the_recipe_asks_at_its_end(folder, capsys):
    assert call("verify", folder / "run") == 0
    assert capsys.readouterr().out.count(SAYS) == 2
    verdicts = dcil.verify_artefact(folder / "run")
    assert [any(SAYS in note for note in verdict.notes) for _, verdict in verdicts] == [True, True]


def test_a_file_away_from_its_run_says_it_too(folder, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes((folder / "run/sparse.safetensors").read_bytes())
    assert call("verify", tmp_path / "x.safetensors") == 0
    out = capsys.readouterr().out
    assert "is asked as scheduled at step 7; the recipe asks 90%" in out


def test_export_and_eval_note_it(folder, tmp_path, capsys):
    out = ("--out", tmp_path / "x.pth")
    assert call("export", folder / "run", "--to", "pth", *out, *own(folder)) == 0
    assert SAYS in capsys.readouterr().err
    assert call("eval", folder / "run", *own(folder), "--device", "cpu") == 0
    assert SAYS in capsys.readouterr().err


def test_a_run_at_its_end_says_nothing_of_its_schedule(folder, tmp_path, capsys):
    assert call(*job(folder), "--out", tmp_path / "run", "--quiet") == 0
    capsys.readouterr()
    assert call("verify", tmp_path / "run") == 0
    assert "as scheduled" not in capsys.readouterr().out
