"""Run folders and files of odd content: told in words by every verb, taken for nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import call, job, net, own, whole_run

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.digest import digest
from dcil_dsl.training.checkpoint import read_file

LAST = "checkpoint/last.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = whole_run(tmp_path_factory.mktemp("odd"))
    assert call("export", folder / "run", "--to", "compact", *own(folder)) == 0
    assert call(*job(folder), "--out", folder / "short", "--max-steps", "11", "--quiet") == 0
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


def forge(folder: Path, change) -> None:
    file = folder / LAST
    tensors, header = read_file(file)
    change(tensors, header)
    save_file(tensors, file, header | {"digest": digest(tensors, header)})


def forge_header(file: Path, **values) -> None:
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    text = json.loads(header["dcil"]) | values
    save_file(load_file(file), file, header | {"dcil": json.dumps(text)})


def position(**values):
    return lambda _, h: h.update(position=json.dumps(json.loads(h["position"]) | values))


MOMENTUM = "optimizer/0.weight/momentum_buffer"
REFUSED = {
    "nothing of the position": lambda t, h: h.update(position="{}"),
    "no epoch": lambda t, h: h.update(position='{"step": 16, "batch": 0, "told": true}'),
    "another format": lambda t, h: h.update(format="dcil checkpoint 2"),
    "a renamed tensor": lambda t, h: t.update({"model/x": t.pop("model/8.bias")}),
    "a wider type": lambda t, h: t.update({"model/8.bias": t["model/8.bias"].double()}),
    "a narrow type": lambda t, h: t.update({"model/8.bias": t["model/8.bias"].half()}),
    "no numbers": lambda t, h: t.update({"model/0.weight": torch.zeros(0)}),
    "no momentum": lambda t, h: t.pop(MOMENTUM),
    "Adam's momentum": lambda t, h: t.update({"optimizer/0.bias/exp_avg": torch.zeros(16)}),
    "a memory": lambda t, h: t.update({"memory/x": torch.zeros(1)}),
    "an average": lambda t, h: t.update({"average/8.bias": torch.zeros(10)}),
    "sums of another length": lambda t, h: t.update(sums=torch.zeros(1, dtype=torch.float64)),
    "waited less than nothing": position(waited=-1.0),
    "a step after the run": position(step=24, epoch=3),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_checkpoint_that_no_run_of_this_plan_has_written_is_not_gone_on_from(
    made, folder, change, capsys
):
    forge(folder / "short", REFUSED[change])
    before = (folder / "short" / LAST).read_bytes()
    assert call(*job(made), "--out", folder / "short", "--resume", "--quiet") == 2
    err = capsys.readouterr().err
    assert "last.safetensors" in err and "Traceback" not in err
    assert (folder / "short" / LAST).read_bytes() == before


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(made, folder, capsys):
    shutil.rmtree(folder / "run" / "checkpoint")
    before = (folder / "run" / "sparse.safetensors").read_bytes()
    assert call(*job(made), "--out", folder / "run", "--resume", "--quiet") == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert (folder / "run" / "sparse.safetensors").read_bytes() == before
    assert call("verify", folder / "run") == 0
    assert "the run has no checkpoint: it is not proved" in capsys.readouterr().out


def test_a_run_s_own_file_without_a_header_does_not_hold(folder, capsys):
    file = folder / "run" / "sparse.safetensors"
    save_file(load_file(file), file)
    assert call("verify", folder / "run") == 1
    assert "the file says nothing about itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    "shape", [[1, 3, 0, 0], [1, 3, 2, 2], [1, 7, 32, 32], [1, 3, 10**6, 10**6]]
)
def test_images_of_a_header_that_the_model_does_not_take_are_reported(folder, shape, capsys):
    file = folder / "alone.safetensors"
    shutil.copy(folder / "run" / "sparse.safetensors", file)
    forge_header(file, sizes={"x": {"shape": shape, "dtype": "float32"}})
    assert call("export", file, "--to", "compact", *own(folder)) == 2
    err = capsys.readouterr().err
    assert "header of" in err and "Traceback" not in err


def test_a_promise_of_more_than_there_is_does_not_hold(folder, capsys):
    file = folder / "alone.safetensors"
    shutil.copy(folder / "run" / "sparse.safetensors", file)
    with safe_open(file, framework="pt") as opened:
        promises = json.loads(opened.metadata()["dcil"])["promises"]
    promises[0]["keeps"] = [10**30]
    forge_header(file, promises=promises)
    assert call("verify", file) == 1
    assert "the promise lets" in capsys.readouterr().out
    promises[0]["keeps"] = [5040]
    forge_header(file, promises=promises)
    assert call("verify", file) == 0
    assert "90% is asked, and floors let 5,040 of 5,040 weights stay" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kept", [{"-1": [0]}, {"7": [0]}, {"0": [0, 0, 1]}, {"0": [1, 0]}, {"0": [10**18]}]
)
def test_an_index_map_that_does_not_rise_within_its_tensor_is_refused(folder, kept):
    file = folder / "run" / "compact" / "shapes.json"
    shapes = json.loads(file.read_text())
    shapes["tensors"]["0.weight"]["kept"] = kept
    file.write_text(json.dumps(shapes))
    for read in (lambda f: dcil.load_compact(f, net(folder)), dcil.expand):
        with pytest.raises(InputError, match="is not a shape file: tensors.0.weight"):
            read(folder / "run" / "compact")


SMALL = {
    "int8": lambda t: torch.zeros(10, dtype=torch.int8),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
    "NaN": lambda t: t.fill_(torch.nan),
}


@pytest.mark.parametrize("kind", SMALL)
def test_small_weights_that_are_no_weights_of_the_model_are_refused(folder, kind):
    compact = folder / "run" / "compact"
    tensors = load_file(compact / "small.safetensors")
    tensors["8.bias"] = SMALL[kind](tensors["8.bias"])
    save_file(tensors, compact / "small.safetensors")
    shapes = json.loads((compact / "shapes.json").read_text())
    shapes["digest"] = digest(tensors)
    (compact / "shapes.json").write_text(json.dumps(shapes))
    with pytest.raises(InputError, match=f"8.bias of the small network .*{kind}"):
        dcil.load_compact(compact, net(folder))


def test_a_link_that_leads_nowhere_is_not_a_file_that_was_never_exported(folder, capsys):
    file = folder / "run" / "sparse.safetensors"
    file.unlink()
    file.symlink_to("sparse.safetensors")
    assert call("verify", folder / "run") == 2
    assert "there is no file" in capsys.readouterr().err


def test_nan_of_a_path_that_is_not_deployed_is_reported_of_a_checkpoint(folder, capsys):
    forge(folder / "run", lambda t, h: t["model/1__dense.running_var"].fill_(torch.nan))
    assert call("verify", folder / "run") == 1
    assert "1__dense.running_var holds numbers that are not finite" in capsys.readouterr().out
