"""ExecuTorch's files compute as the network, and the program that they were lowered from proves
their zeros."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.library import needed
from support.tiny_job import call, net, own, whole_run

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for
from dcil_dsl.extras.bench.engines import ENGINES
from dcil_dsl.extras.bench.exported import ExportedSubject, engines_for

runtime = needed("executorch.runtime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = whole_run(tmp_path_factory.mktemp("job"))
    assert call("export", folder / "run", "--to", "executorch", *own(folder)) == 0
    return folder


@pytest.fixture
def original(folder):
    model = net(folder)
    model.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    return model.eval()


def test_the_file_computes_as_the_network(folder, original):
    program = runtime.Runtime.get().load_program(folder / "run" / "executorch" / "network.pte")
    x = torch.randn(1, 3, 32, 32)
    (found,) = program.load_method("forward").execute([x])
    torch.testing.assert_close(found, original(x), rtol=1e-4, atol=1e-5)


def test_verify_counts_the_zeros_before_lowering(folder, original, capsys):
    place = folder / "run" / "executorch"
    assert call("verify", place) == 0
    assert "3.weight" in capsys.readouterr().out
    found = exporter_for(place).read(place).tensors
    state = original.state_dict()
    assert {"0.weight", "3.weight"} <= found.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def test_a_folder_of_another_run_is_a_fault(folder, tmp_path, capsys):
    """Each file is sound; together they are not one network."""
    other = folder / "run" / "executorch"
    for name in ("program.pt2", "network.pte"):
        (tmp_path / name).write_bytes((other / name).read_bytes())
    data = bytearray((tmp_path / "network.pte").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "network.pte").write_bytes(data)
    assert call("verify", tmp_path) == 1
    assert "its digest differs" in capsys.readouterr().out


def test_bench_runs_the_file_and_refuses_a_damaged_one_before_it_is_loaded(
    folder, original, tmp_path
):
    place = folder / "run" / "executorch"
    assert engines_for(place) == ("executorch",)
    subject = ExportedSubject(place, 1, 1)
    (found,) = ENGINES["executorch"][1](subject)()
    torch.testing.assert_close(found, original(subject.inputs[0]), rtol=1e-4, atol=1e-5)
    bad = shutil.copytree(place, tmp_path / "bad")
    (bad / "network.pte").write_bytes((place / "network.pte").read_bytes()[:-100])
    with pytest.raises(InputError, match="its digest differs"):
        engines_for(bad)


def test_a_network_that_cannot_be_lowered_is_refused(folder, monkeypatch):
    import executorch.exir

    def fails(*arguments, **named):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(executorch.exir, "to_edge_transform_and_lower", fails)
    assert call("export", folder / "run", "--to", "executorch", *own(folder)) == 2


def test_a_missing_library_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition", None)
    with pytest.raises(InputError, match="`executorch` needs the library") as found:
        EXPORTERS["executorch"].write(None, folder / "elsewhere")
    assert found.value.help == "pip install 'dcil-dsl[executorch]'"
