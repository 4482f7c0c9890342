"""`dcil verify` looks at every tensor, and in a run's folder at whose file it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import call, job, own, whole_run

from dcil_dsl.exporting.exporters import exporter_for
from dcil_dsl.model.digest import digest
from dcil_dsl.training.checkpoint import read_file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run to its end; early.safetensors, what it had exported after one step."""
    folder = whole_run(tmp_path_factory.mktemp("job"))
    assert call(*job(folder), "--out", folder / "short", "--max-steps", "1", "--quiet") == 0
    shutil.copy(folder / "short" / "sparse.safetensors", folder / "early.safetensors")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


def forge(file: Path, change, **header) -> None:
    """Change tensors and header of an exported file, and make its digest right again."""
    read = exporter_for(file).read(file)
    change(read.tensors)
    text = json.loads(read.origin.model_dump_json()) | header | {"digest": digest(read.tensors)}
    save_file(read.tensors, file, {"format": "pt", "dcil": json.dumps(text)})


def forge_checkpoint(file: Path, change, **position) -> None:
    tensors, header = read_file(file)
    change(tensors)
    header["position"] = json.dumps(json.loads(header["position"]) | position)
    save_file(tensors, file, header | {"digest": digest(tensors, header)})


# -- whose file it is ------------------------------------------------------------------------


def test_a_file_of_an_earlier_step_is_not_the_run_s(folder, capsys):
    shutil.copy(folder / "early.safetensors", folder / "run" / "sparse.safetensors")
    assert call("verify", folder / "run") == 1
    assert "this is the file of step 1, the run is at step 16" in capsys.readouterr().out


def test_a_file_of_another_path_is_not_the_run_s(folder, capsys):
    file = folder / "other.safetensors"
    asked = ["export", folder / "run", "--to", "safetensors", "--path", "dense", *own(folder)]
    assert call(*asked, "--out", file) == 0
    shutil.copy(file, folder / "run" / "sparse.safetensors")
    assert call("verify", folder / "run") == 1
    assert "this is path `dense`, the run deploys `sparse`" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["run", "short"])
def test_export_does_not_put_another_path_in_the_place_of_a_run_s_own_file(folder, place, capsys):
    file = folder / place / "sparse.safetensors"
    before = file.read_bytes()
    asked = ["export", folder / "run", "--to", "safetensors", "--path", "dense", *own(folder)]
    assert call(*asked, "--out", file) == 2
    assert "is a file of the run" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert call(*asked, "--out", folder / place / "checkpoint" / "last.safetensors") == 2
    assert call("verify", folder / "run") == 0


def test_export_makes_the_run_s_own_file_anew(folder):
    file = folder / "run" / "sparse.safetensors"
    before = file.read_bytes()
    file.unlink()
    asked = ["export", folder / "run", "--to", "safetensors", *own(folder)]
    assert call(*asked, "--out", file) == 0
    assert file.read_bytes() == before


def test_the_file_of_another_run_of_the_same_recipe_is_not_this_run_s(made, folder, capsys):
    other = ["--seed", "5", "--out", folder / "other", "--quiet"]
    assert call(*job(made), *other) == 0
    shutil.copy(folder / "other" / "sparse.safetensors", folder / "run" / "sparse.safetensors")
    assert call("verify", folder / "run") == 1
    out = capsys.readouterr().out
    assert "the numbers are not those that the checkpoint deploys: 0.bias, 0.weight" in out


# -- every tensor ----------------------------------------------------------------------------

CHANGES = {
    "extra": (lambda t: t.update(x=torch.zeros(3)), "x is not a tensor of the model"),
    "missing": (lambda t: t.pop("8.bias"), "8.bias is missing"),
    "reshaped": (
        lambda t: t.update({"0.weight": t["0.weight"].reshape(16, 27)}),
        "0.weight has the shape 16 x 27, the model 16 x 3 x 3 x 3",
    ),
    "whole": (
        lambda t: t.update({"0.weight": torch.zeros(16, 3, 3, 3, dtype=torch.int8)}),
        "0.weight is int8",
    ),
    "half": (lambda t: t.update({"8.bias": t["8.bias"].half()}), "8.bias is float16, in the model"),
    "NaN": (lambda t: t["8.bias"].fill_(torch.nan), "8.bias holds numbers that are not finite"),
    "inf": (
        lambda t: t["1.running_var"].fill_(torch.inf),
        "1.running_var holds numbers that are not finite",
    ),
    "moved": (lambda t: t["8.bias"].add_(1), "the checkpoint deploys: 8.bias"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_tensor_of_a_run_s_file_is_the_model_s_and_holds_what_was_trained(
    folder, change, capsys
):
    act, fault = CHANGES[change]
    forge(folder / "run" / "sparse.safetensors", act)
    assert call("verify", folder / "run") == 1
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize("change", ["extra", "missing", "reshaped", "whole", "NaN", "inf"])
def test_each_tensor_of_a_pth_is_compared_with_the_model_that_is_named(folder, change, capsys):
    act, fault = CHANGES[change]
    tensors = load_file(folder / "run" / "sparse.safetensors")
    act(tensors)
    torch.save(tensors, folder / "alone.pth")
    asked = ["verify", folder / "alone.pth", "--recipe", folder / "tiny.prune", *own(folder)]
    assert call(*asked) == 1
    assert fault in capsys.readouterr().out


@pytest.mark.parametrize("change", ["whole", "NaN", "inf"])
def test_what_a_file_alone_can_be_asked_is_asked(folder, change, capsys):
    act, fault = CHANGES[change]
    shutil.copy(folder / "run" / "sparse.safetensors", folder / "alone.safetensors")
    forge(folder / "alone.safetensors", act)
    assert call("verify", folder / "alone.safetensors") == 1
    assert fault in capsys.readouterr().out


def test_a_file_alone_that_promises_nothing_does_not_hold(folder, capsys):
    shutil.copy(folder / "run" / "sparse.safetensors", folder / "alone.safetensors")
    forge(folder / "alone.safetensors", lambda t: None, promises=[])
    assert call("verify", folder / "alone.safetensors") == 1
    assert "the file promises nothing" in capsys.readouterr().out


def test_minus_infinity_in_a_constant_is_reported_and_is_no_fault(folder, capsys):
    shutil.copy(folder / "run" / "sparse.safetensors", folder / "alone.safetensors")
    forge(folder / "alone.safetensors", lambda t: t.update(mask=torch.tensor([0.0, -torch.inf])))
    assert call("verify", folder / "alone.safetensors") == 0
    assert "note: mask holds -inf" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_weights_of_few_bits_are_counted(folder, kind, capsys):
    tensors = load_file(folder / "run" / "sparse.safetensors")
    for name in ("0.weight", "3.weight"):
        small = tensors[name].sign().to(getattr(torch, kind))
        tensors[name] = small
    save_file(tensors, folder / "small.safetensors")
    asked = ["--recipe", folder / "tiny.prune", *own(folder)]
    assert call("verify", folder / "small.safetensors", *asked) == 0
    assert "504 are not zero" in capsys.readouterr().out


ODD = {
    "coo": lambda t: t.to_sparse(),
    "csr": lambda t: t.reshape(16, 27).to_sparse_csr(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_not_plain_are_named_by_verify_and_as_weights(folder, kind, capsys):
    tensors = load_file(folder / "run" / "sparse.safetensors")
    tensors["0.weight"] = ODD[kind](tensors["0.weight"])
    torch.save(tensors, folder / "odd.pth")
    asked = ["--recipe", folder / "tiny.prune", *own(folder)]
    assert call("verify", folder / "odd.pth", *asked) == 2
    assert "`0.weight`" in capsys.readouterr().err
    assert call(*job(folder), "--weights", folder / "odd.pth", "--out", folder / "new") == 2
    err = capsys.readouterr().err
    assert "0.weight" in err and "Traceback" not in err


# -- the checkpoint --------------------------------------------------------------------------

MASK = "model/0.weight_mask"
CHECKPOINTS = {
    "a float mask": (lambda t: t.update({MASK: t[MASK].float()}), "0.weight_mask", "is float32"),
    "no mask": (lambda t: t.pop(MASK), "0.weight_mask", "0.weight has no mask"),
    "another shape": (
        lambda t: t.update({MASK: t[MASK].reshape(16, 27)}),
        "0.weight_mask",
        "16 x 27",
    ),
    "no weight": (lambda t: t.pop("model/0.weight"), "lacks `0.weight`", "0.weight is missing"),
    "a reshaped weight": (
        lambda t: t.update({"model/0.weight": t["model/0.weight"].reshape(16, 27)}),
        "`0.weight` has shape (16, 27)",
        "0.weight has the shape 16 x 27, the plan",
    ),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_checkpoint_with_a_right_digest_that_does_not_fit_is_no_traceback(folder, change, capsys):
    act, refused, fault = CHECKPOINTS[change]
    forge_checkpoint(folder / "run" / "checkpoint" / "last.safetensors", act)
    assert call("verify", folder / "run" / "checkpoint" / "last.safetensors") == 1
    assert fault in capsys.readouterr().out
    assert call("verify", folder / "run") == 1
    capsys.readouterr()
    for verb in (["eval"], ["export", "--to", "pth"], ["export", "--to", "compact"]):
        assert call(verb[0], folder / "run", *verb[1:], *own(folder)) == 2
        err = capsys.readouterr().err
        assert refused in err and "Traceback" not in err, err


def test_masks_that_moved_are_met_by_every_verb(folder, capsys):
    """Their counts are right; what was exported under the right ones lies beside them."""
    file = folder / "run" / "checkpoint" / "last.safetensors"
    forge_checkpoint(file, lambda t: t.update({MASK: t[MASK].roll(7)}))
    assert call("verify", folder / "run") == 1
    assert "revived" in capsys.readouterr().out
    for verb in (["eval"], ["export", "--to", "pth"], ["export", "--to", "compact"]):
        assert call(verb[0], folder / "run", *verb[1:], *own(folder)) == 1
        assert "the numbers are not those that the checkpoint deploys" in capsys.readouterr().err


@pytest.mark.parametrize(
    "position", [{"step": -5}, {"step": 3}, {"step": 10**40}, {"epoch": 5, "step": 40}]
)
def test_a_position_that_cannot_be_is_refused_by_every_verb(folder, position, capsys):
    file = folder / "run" / "checkpoint" / "last.safetensors"
    forge_checkpoint(file, lambda t: None, **position)
    for verb in (["verify"], ["eval", *own(folder)], ["export", "--to", "pth", *own(folder)]):
        assert call(verb[0], folder / "run", *verb[1:]) == 2, verb
        assert "last.safetensors" in capsys.readouterr().err


def test_the_checkpoint_before_the_last_is_verified_as_one(folder, capsys):
    assert call("verify", folder / "run" / "checkpoint" / "previous.safetensors") == 0
    assert "holds what was asked" in capsys.readouterr().out


def test_the_header_still_names_the_step_and_the_path(made):
    with safe_open(made / "early.safetensors", framework="pt") as opened:
        header = json.loads(opened.metadata()["dcil"])
    assert (header["step"], header["path"]) == (1, "sparse")
