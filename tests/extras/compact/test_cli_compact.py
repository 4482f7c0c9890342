"""`dcil export --to compact` on a run of seconds, and on a file alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import NET, RECIPE, call, job, net, own

import dcil_dsl as dcil
from dcil_dsl.model.digest import digest
from dcil_dsl.zoo import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.prune, net.py, `run`, cut short after one step, before anything is pruned, and `done`,
    run to its end."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "tiny.prune").write_text(RECIPE)
    (folder / "net.py").write_text(NET)
    assert call(*job(folder), "--max-steps", "1", "--out", str(folder / "run")) == 0
    assert call(*job(folder), "--out", str(folder / "done")) == 0
    return folder


@pytest.fixture
def file(folder, tmp_path) -> Path:
    """net.safetensors, a file that names no model: the run's exported tensors, half of the filters
    of each convolution zero (the first 8 of 16 of the first, every other one of the second)."""
    tensors = load_file(folder / "run" / "sparse.safetensors")
    tensors["0.weight"][:8] = 0.0
    tensors["3.weight"][::2] = 0.0
    save_file(tensors, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_run_is_made_smaller_and_what_was_measured_is_printed(folder, capsys):
    assert call("export", folder / "run", "--to", "compact", *own(folder)) == 0
    out = capsys.readouterr().out
    for text in ("parameters", "multiply-accumulates per example", "largest difference on 8"):
        assert text in out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    report = json.loads((folder / "run" / "compact" / "report.json").read_text())
    assert report["largest_difference"] < 1e-5 and report["batch_size"] == 32
    assert report["before"]["parameters"] == 16 * 27 + 16 + 32 + 32 * 144 + 32 + 64 + 330


def test_a_file_of_another_origin_needs_the_model(file, folder, tmp_path, capsys):
    assert call("export", file, "--to", "compact") == 2
    assert "does not name its model" in capsys.readouterr().err
    out = tmp_path / "small"
    spec = f"{folder}/net.py:Net"
    assert call("export", file, "--to", "compact", "--model", spec, "--out", out) == 0
    printed = capsys.readouterr().out
    times = json.loads((out / "report.json").read_text())["before"]
    assert times["fastest"] <= times["milliseconds"] <= times["slowest"]
    assert f"{times['fastest']:.2f}..{times['slowest']:.2f}" in printed
    assert "milliseconds for a batch of 32" in printed and "this machine as it was" in printed
    # one filter of the second convolution stays for none of its readers: a mean takes a constant
    assert "3.weight  32 x 16 x 3 x 3  16 x 8 x 3 x 3" in printed
    original = net(folder)
    original.load_state_dict(load_file(file))
    small = dcil.load_compact(out, build_model(spec, 10))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(small(x), original.eval()(x), rtol=1e-4, atol=1e-5)
    again = net(folder)
    again.load_state_dict(dcil.expand(out), strict=True)
    torch.testing.assert_close(again.eval()(x), original(x), rtol=1e-4, atol=1e-5)


def test_a_file_in_a_run_folder_is_of_the_runs_model_and_images(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    torch.save(load_file(run / "sparse.safetensors"), run / "sparse.pth")  # has no header
    asks = "def asks(num_classes):\n    return Net(num_classes)\n"
    (tmp_path / "asks.py").write_text(f"{NET}\n\n{asks}")
    for given in (run / "sparse.safetensors", run / "sparse.pth"):
        asked = ["--model", f"{tmp_path}/asks.py:asks", "--out", tmp_path / given.name]
        assert call("export", given, "--to", "compact", *asked) == 0
        report = json.loads((tmp_path / given.name / "report.json").read_text())
        plan = json.loads((run / "plan.json").read_text())
        assert report["before"]["macs"] == sum(layer["macs"] for layer in plan["layers"])


def test_files_of_two_names_in_one_folder_do_not_share_the_folder_that_is_written(file, folder):
    torch.save(load_file(file), file.with_suffix(".pth"))  # the same network in another format
    assert call("export", file, "--to", "compact", *own(folder)) == 0
    assert {entry.name for entry in file.parent.iterdir() if entry.is_dir()} == {"compact"}
    other = file.with_name("other.pth")
    torch.save(load_file(file), other)
    for given in (file, other):
        assert call("export", given, "--to", "compact", *own(folder)) == 0
    folders = {entry.name for entry in file.parent.iterdir() if entry.is_dir()}
    assert folders == {"compact", "compact-net", "compact-other"}


def test_a_file_has_no_paths_to_choose_from(file, folder, capsys):
    asked = ["export", file, "--to", "compact", "--path", "dense", *own(folder)]
    assert call(*asked) == 2
    assert "--path dense: a file holds one path" in capsys.readouterr().err


def test_the_wrong_model_and_a_missing_run_are_reported_in_plain_text(file, folder, capsys):
    assert call("export", file, "--to", "compact", "--model", f"{folder}/net.py:two_classes") == 2
    assert "net.safetensors does not fit" in capsys.readouterr().err
    assert call("export", folder / "nowhere", "--to", "compact") == 2
    assert call("export", folder / "run", "--to", "compact", "--path", "blue") == 2
    assert "the run has no path `blue`" in capsys.readouterr().err


def test_scattered_zeros_are_said_to_stay_and_no_time_is_reported_of_one_network_twice(
    file, folder, tmp_path, capsys
):
    tensors = load_file(file)
    tensors = {name: torch.ones_like(tensor) for name, tensor in tensors.items()}
    tensors["3.weight"].view(-1)[::2] = 0.0
    save_file(tensors, tmp_path / "scattered.safetensors")
    own_model = ("--model", f"{folder}/net.py:Net", "--out", tmp_path / "same")
    assert call("export", tmp_path / "scattered.safetensors", "--to", "compact", *own_model) == 0
    printed = capsys.readouterr().out
    assert "no layer shrank: no filter, input channel or head is all zero" in printed
    assert "milliseconds" not in printed


def test_a_file_outside_its_run_is_tried_on_images_as_it_was_trained_on(folder, tmp_path):
    """Else on what its model takes at most, 224 pixels, in batches of 32: that is minutes."""
    shutil.copy(folder / "run" / "sparse.safetensors", tmp_path / "alone.safetensors")
    assert call("export", tmp_path / "alone.safetensors", "--to", "compact", *own(folder)) == 0
    shapes = json.loads((tmp_path / "compact" / "shapes.json").read_text())
    assert shapes["inputs"][0]["shape"] == [2, 3, 32, 32]


def test_a_compact_folder_is_verified_by_its_header_and_by_the_run_it_lies_in(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    assert call("export", run, "--to", "compact", *own(folder)) == 0
    assert call("verify", run / "compact") == 0
    alone = shutil.copytree(run / "compact", tmp_path / "alone")
    assert call("verify", alone) == 0


def test_a_compact_folder_in_which_a_weight_came_back_does_not_verify(folder, tmp_path, capsys):
    asked = ["--to", "compact", "--out", tmp_path / "small", *own(folder)]
    assert call("export", folder / "done", *asked) == 0
    capsys.readouterr()
    assert call("verify", tmp_path / "small") == 0
    assert "504 are not zero" in capsys.readouterr().out
    with safe_open(tmp_path / "small" / "small.safetensors", framework="pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    weight = tensors["3.weight"].reshape(-1)
    weight[(weight == 0).nonzero()[0]] = 1.0
    save_file(tensors, tmp_path / "small" / "small.safetensors", header)
    shapes = json.loads((tmp_path / "small" / "shapes.json").read_text())
    shapes["digest"] = digest(tensors)  # else the pair of files is refused
    (tmp_path / "small" / "shapes.json").write_text(json.dumps(shapes))
    assert call("verify", tmp_path / "small") == 1
    out = capsys.readouterr().out
    assert "505 weights are not zero, 504 allowed" in out and "the digest differs" in out


def test_any_exported_file_becomes_another_format(folder, tmp_path, capsys):
    given = shutil.copy(folder / "run" / "sparse.safetensors", tmp_path / "net.safetensors")
    assert call("export", given, "--to", "pth", *own(folder)) == 0
    assert capsys.readouterr().out == f"{tmp_path}/net.pth\n"
    loaded = torch.load(tmp_path / "net.pth", weights_only=True)
    assert all(torch.equal(loaded[name], t) for name, t in load_file(given).items())
    assert call("export", given, "--to", "safetensors", *own(folder)) == 2
    assert "is the file that is read" in capsys.readouterr().err
