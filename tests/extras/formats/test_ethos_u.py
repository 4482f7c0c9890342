"""Arm's compiler needs fewer bytes and cycles for zeros, and every zero stays the code of zero."""

import re
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.library import needed
from support.tiny_job import call, net, own, whole_run

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for

needed("executorch.runtime"), needed("ethosu.vela")

# Arm's own example (executorch, examples/arm/pruning_minimal_example.ipynb) on other digits.
RECIPE = """language 1

recipe mlp { title = "the MLP of Arm's example, 95% unstructured" }

data digits {
  batch_size = 128
  image_size = 28
  channels   = 1
}

prune Linear to global(95%) {
  schedule = cubic(0ep..60% run)
  refresh  = 4 steps
}

mix {
  path sparse = masked
  update kept by sparse
  loss cross_entropy(sparse)
  deploy sparse
}

train {
  epochs    = 10ep
  optimizer = adam(lr=1e-3)
  lr        = constant()
}
"""

MLP = """
from torch import nn


def mlp(num_classes=10):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, num_classes),
    )
"""


def report(out):
    """{"dense": (encoded KiB, cycles), "sparse": ...} of what the export prints."""
    rows = re.findall(r"^(dense|sparse) +\S+ KiB +(\S+) KiB +\S+ +(\S+)$", out, re.MULTILINE)
    return {
        name: (float(size.replace(",", "")), float(cycles.replace(",", "")))
        for name, size, cycles in rows
    }


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlp")
    (folder / "mlp.prune").write_text(RECIPE)
    (folder / "net.py").write_text(MLP)
    asked = ("--model", folder / "net.py:mlp", "--train", "digits", "--quiet")
    assert call("compile", folder / "mlp.prune", *asked, "--out", folder / "run") == 0
    return folder


def test_zeros_shrink_the_weights_and_the_cycles_of_an_mlp(mlp, capsys):
    model = ("--model", mlp / "net.py:mlp")
    assert call("export", mlp / "run", "--to", "ethos-u85", *model) == 0
    printed = capsys.readouterr()
    found = report(printed.out + printed.err)
    assert "largest difference to float32 on noise" in printed.out + printed.err
    assert found["sparse"][0] < found["dense"][0] / 5
    assert found["sparse"][1] < found["dense"][1] / 2
    place = mlp / "run" / "ethos-u85"
    assert call("verify", place) == 0
    tensors = exporter_for(place).read(place).tensors
    for name, tensor in load_file(mlp / "run" / "sparse.safetensors").items():
        if name.endswith("weight"):
            assert not tensors[name][tensor == 0].any() and tensors[name].any(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a convolutional network."""
    return whole_run(tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize("name", ["ethos-u55", "ethos-u65", "ethos-u85"])
def test_a_convolutional_network_keeps_every_zero(folder, name, capsys):
    assert call("export", folder / "run", "--to", name, *own(folder)) == 0
    assert call("verify", folder / "run" / name) == 0
    assert "3.weight" in capsys.readouterr().out
    model = net(folder)
    model.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    tensors = exporter_for(folder / "run" / name).read(folder / "run" / name).tensors
    for key in ("0.weight", "3.weight"):
        assert not tensors[key][model.state_dict()[key] == 0].any(), key


def test_int8_needs_a_run_folder(mlp, tmp_path, capsys):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((mlp / "run" / "sparse.safetensors").read_bytes())
    assert call("export", alone, "--to", "ethos-u85", "--model", mlp / "net.py:mlp") == 2
    assert "calibrated on the data of the run" in capsys.readouterr().err


def test_a_missing_compiler_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    with pytest.raises(InputError, match="`ethos-u85` needs the library") as found:
        EXPORTERS["ethos-u85"].write(None, tmp_path / "elsewhere")
    assert found.value.help == "pip install 'dcil-dsl[ethos-u]'"


def test_two_programs_of_one_network_have_the_same_weights(mlp):
    """Calibration reads the same examples in the same order."""
    place = mlp / "run" / "ethos-u85"
    before = exporter_for(place).read(place).tensors
    again = mlp / "again"
    model = ("--model", mlp / "net.py:mlp", "--out", again)
    assert call("export", mlp / "run", "--to", "ethos-u85", *model) == 0
    after = exporter_for(again).read(again).tensors
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
