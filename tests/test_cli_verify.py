"""`dcil verify` on the run of the main job: what holds, and what was changed since."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_job import RECIPE, call, net, own, whole_run

import dcil_dsl as dcil
from dcil_dsl.exporting.exporters import exporter_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.prune, net.py, and `run`: the main job, done once for the module."""
    return whole_run(tmp_path_factory.mktemp("job"))


@pytest.fixture
def run(folder, tmp_path):
    """A copy of the run, to do harm to."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def revive(file, header=lambda text: text):
    """Give one pruned weight of an exported file a value, keeping its header."""
    artefact = exporter_for(file).read(file)
    weight = artefact.tensors["3.weight"].reshape(-1)
    weight[(weight == 0).nonzero()[0]] = 1e-20
    metadata = {"format": "pt", "dcil": header(artefact.origin.model_dump_json())}
    save_file(artefact.tensors, file, metadata)


def test_verify_proves_the_file_and_the_checkpoint(folder, capsys):
    assert call("verify", folder / "run") == 0
    out = capsys.readouterr().out
    assert out.count("holds what was asked") == 2
    assert "asked 90%, measured 90%; 504 of 5,040 weights may be kept, 504 are not zero" in out


def test_a_program_verifies_and_hears_nothing_where_all_is_well(folder):
    verdicts = dcil.verify_artefact(folder / "run")
    assert [verdict.holds for _, verdict in verdicts] == [True, True]


def test_verify_catches_a_file_in_which_one_weight_came_back(run, capsys):
    revive(run / "sparse.safetensors")
    assert call("verify", run / "sparse.safetensors") == 1
    out = capsys.readouterr().out
    assert "505 weights are not zero, 504 allowed" in out
    assert "1 pruned weight is not zero: revived" in out


def test_verify_catches_a_file_whose_header_was_made_to_fit(run, capsys):
    revive(run / "sparse.safetensors", header=lambda text: text.replace("[504]", "[505]"))
    assert call("verify", run / "sparse.safetensors") == 1
    out = capsys.readouterr().out
    assert "the header does not promise what the plan.json next to it asks" in out
    assert "the digest differs" in out


def test_verify_catches_an_edited_checkpoint(run, capsys):
    file = run / "checkpoint" / "last.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert call("verify", file) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_file_alone_is_verified_by_its_header(run, tmp_path):
    shutil.copy(run / "sparse.safetensors", tmp_path / "alone.safetensors")
    assert call("verify", tmp_path / "alone.safetensors") == 0
    revive(tmp_path / "alone.safetensors")
    assert call("verify", tmp_path / "alone.safetensors") == 1


def test_a_pth_has_nothing_to_compare_with_but_a_recipe(folder, tmp_path, capsys):
    file = tmp_path / "alone.pth"
    assert call("export", folder / "run", "--to", "pth", "--out", file, *own(folder)) == 0
    assert capsys.readouterr().out == f"{file}\n"
    net(folder).load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert call("verify", file) == 2
    asked = ["--recipe", folder / "tiny.prune", "--model", f"{folder}/net.py:Net"]
    assert call("verify", file, *asked) == 0
    assert call("verify", file, *asked, "--set", "target=95%") == 1


def test_verify_takes_the_length_of_an_epoch_where_only_data_would_tell(folder, tmp_path, capsys):
    text = RECIPE.replace("synthetic", "imagefolder").replace("0ep..1ep", "0ep..3000 steps")
    (tmp_path / "long.prune").write_text(text)
    save_file(load_file(folder / "run" / "sparse.safetensors"), tmp_path / "plain.safetensors")
    asked = ["verify", tmp_path / "plain.safetensors", "--recipe", tmp_path / "long.prune"]
    assert call(*asked, *own(folder)) == 1  # two epochs of 1000 steps, as is assumed, are too few
    err = capsys.readouterr().err
    assert "--steps-per-epoch" in err and "E305" in err
    assert call(*asked, *own(folder), "--steps-per-epoch", "5000") == 0
    assert "assumed" not in capsys.readouterr().err


def test_a_file_that_names_its_data_needs_no_length_of_the_epoch(folder, tmp_path, capsys):
    (tmp_path / "other.prune").write_text(RECIPE.replace("synthetic", "imagefolder"))
    shutil.copy(folder / "run" / "sparse.safetensors", tmp_path / "alone.safetensors")
    asked = ["--recipe", tmp_path / "other.prune", *own(folder)]
    assert call("verify", tmp_path / "alone.safetensors", *asked) == 0
    assert "assumed" not in capsys.readouterr().err


def test_what_there_is_to_say_of_a_recipe_is_said_once_for_both_files_of_a_run(folder, capsys):
    assert call("verify", folder / "run", "--recipe", folder / "tiny.prune", *own(folder)) == 0
    out, err = capsys.readouterr()
    assert out.count("holds what was asked") == 2
    assert err.count("the recipe was written for the model `net`") == 1


def test_a_full_file_of_trained_weights_does_not_hold_what_a_recipe_asks(folder, tmp_path, capsys):
    torch.save(net(folder).state_dict(), tmp_path / "dense.pth")
    status = call(
        "verify",
        tmp_path / "dense.pth",
        "--recipe",
        folder / "tiny.prune",
        "--model",
        f"{folder}/net.py:Net",
    )
    assert status == 1
    assert "4,536 revived or never pruned" in capsys.readouterr().out
