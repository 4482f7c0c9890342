"""A finished run is read with the model that was trained, or not at all."""

import shutil
from pathlib import Path

import pytest
from support.tiny_job import call, own, whole_run

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.compact.job import compact_run
from dcil_dsl.jobs.export import read_deployed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and other.py: the same parameters, GELU in place of the second ReLU."""
    folder = whole_run(tmp_path_factory.mktemp("job"))
    text = (folder / "net.py").read_text()
    (folder / "other.py").write_text(text.replace("(32), nn.ReLU()", "(32), nn.GELU()"))
    return folder


@pytest.fixture
def run(folder, tmp_path):
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


@pytest.mark.parametrize(
    "verb",
    [
        ("eval", "--device", "cpu"),
        ("export", "--to", "pth"),
        ("export", "--to", "compact"),
        ("sensitivity", "--batches", "1", "--levels", "50%", "--device", "cpu"),
    ],
    ids=lambda verb: " ".join(verb[:3]),
)
def test_a_forward_that_was_not_trained_is_refused_with_its_lines(folder, run, verb, capsys):
    name, *rest = verb
    other = ("--model", f"{folder}/other.py:Net")
    assert call(name, run, *rest, *other) == 2
    err = capsys.readouterr().err
    assert "was started with another model" in err and "--anyway" in err
    assert "- 5: ReLU()" in err and "+ 5: GELU(approximate='none')" in err
    assert not (run / "sparse.pth").exists() and not (run / "compact").exists()
    assert call(name, run, *rest, *other, "--anyway") == 0
    assert call(name, run, *rest, *own(folder)) == 0


def test_programs_are_refused_alike(folder, run):
    other = f"{folder}/other.py:Net"
    for read in (dcil.evaluate_run, read_deployed, compact_run):
        with pytest.raises(InputError, match="was started with another model"):
            read(run, model=other)
    with pytest.raises(InputError, match="was started with another model"):
        read_deployed(run / "sparse.safetensors", other)
    assert read_deployed(run / "sparse.safetensors", other, anyway=True).network is not None


def test_a_file_with_another_name_and_the_same_forward_is_the_same_model(folder, run):
    text = (folder / "net.py").read_text().replace("class Net", "class Other")
    (folder / "renamed.py").write_text(text.replace("Net(2)", "Other(2)"))
    assert call("eval", run, "--model", f"{folder}/renamed.py:Other", "--device", "cpu") == 0


def test_a_run_of_an_earlier_version_has_no_text_to_compare(folder, run):
    (run / "model.txt").unlink()
    assert call("eval", run, "--model", f"{folder}/other.py:Net", "--device", "cpu") == 0
