"""`dcil export --to cpu` and `dcil verify` on a run of seconds, and on changed folders."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import RECIPE, call, net, own, whole_run

import dcil_dsl as dcil


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.prune, net.py, `run`, and the exported `run/cpu`."""
    folder = whole_run(tmp_path_factory.mktemp("job"))
    assert call("export", folder / "run", "--to", "cpu", *own(folder)) == 0
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """A copy of the run, to do harm to."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def changed(file, change):
    """Write a weights file again with other entries, and its header as it was."""
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    save_file(change(load_file(file)), file, header)


def test_a_run_is_exported_and_computes_what_its_network_computes(folder):
    original = net(folder)
    original.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = original.eval()(x)
    torch.testing.assert_close(dcil.load_cpu(folder / "run" / "cpu")(x), expected)


def test_an_export_prints_the_layers_and_what_runs_them(folder, tmp_path, capsys):
    asked = ("--to", "cpu", "--out", tmp_path / "net", *own(folder))
    assert call("export", folder / "run", *asked) == 0
    printed = capsys.readouterr().out
    assert "conv2d  32x16x3x3" in printed and "3 layers" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100


def test_the_zeros_of_a_cpu_folder_are_counted_against_its_promise(folder, tmp_path, capsys):
    alone = shutil.copytree(folder / "run" / "cpu", tmp_path / "alone")
    for place in (folder / "run" / "cpu", alone):
        assert call("verify", place) == 0
        out = capsys.readouterr().out
        assert "504 of 5,040 weights may be kept, 504 are not zero" in out
        assert "holds what was asked" in out


def test_a_cpu_folder_is_compared_with_a_recipe(folder, tmp_path, capsys):
    (tmp_path / "more.prune").write_text(RECIPE.replace("target = 90%", "target = 95%"))
    asked = ("verify", folder / "run" / "cpu", *own(folder), "--steps-per-epoch", "4")
    assert call(*asked, "--recipe", folder / "tiny.prune") == 0
    assert call(*asked, "--recipe", tmp_path / "more.prune") == 1
    assert "252 allowed" in capsys.readouterr().out


def test_another_number_in_a_cpu_folder_is_found(run, capsys):
    name = "3.weight.folded:values"
    changed(run / "cpu" / "weights.safetensors", lambda t: {**t, name: t[name] + 1})
    assert call("verify", run / "cpu") == 2
    assert "does not hold the tensors" in capsys.readouterr().err


def test_a_header_that_promises_less_than_the_run_is_found(run, capsys):
    file = run / "cpu" / "weights.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    header["dcil"] = header["dcil"].replace('"keeps":[504]', '"keeps":[5040]')
    save_file(load_file(file), file, header)
    assert call("verify", run / "cpu") == 1
    assert "does not promise what the plan.json" in capsys.readouterr().out


def test_another_path_of_a_run_is_exported_next_to_the_deployed_one(run, folder, capsys):
    assert call("export", run, "--to", "cpu", "--path", "dense", *own(folder)) == 0
    assert (run / "cpu-dense" / "program.json").exists()
    assert call("verify", run / "cpu-dense") == 1
    assert "path `dense`, the run deploys `sparse`" in capsys.readouterr().out


def test_an_exported_file_becomes_a_cpu_folder(folder, tmp_path, capsys):
    shutil.copy(folder / "run" / "sparse.safetensors", tmp_path / "sparse.safetensors")
    assert call("export", tmp_path / "sparse.safetensors", "--to", "cpu", *own(folder)) == 0
    assert call("verify", tmp_path / "cpu") == 0


def test_a_network_that_cannot_be_traced_is_refused_in_one_sentence(folder, tmp_path, capsys):
    branches = (
        "import torch\nfrom torch import nn\n\n\nclass Odd(nn.Sequential):\n"
        "    def forward(self, x):\n        return super().forward(x) * float(torch.rand(()))\n"
    )
    (tmp_path / "odd.py").write_text(
        (folder / "net.py")
        .read_text()
        .replace("nn.Sequential", "Odd")
        .replace("from torch import nn", branches)
    )
    shutil.copy(folder / "run" / "sparse.safetensors", tmp_path / "sparse.safetensors")
    asked = ("--to", "cpu", "--model", f"{tmp_path}/odd.py:Net")
    assert call("export", tmp_path / "sparse.safetensors", *asked) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "cpu").exists()
