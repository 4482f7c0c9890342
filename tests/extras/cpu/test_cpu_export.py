"""What an export writes, what it refuses, and where it runs without a compiler."""

import json
import warnings

import pytest
import torch
from support.cpu_nets import assert_as_exact_as_torch, network_of, pruned
from torch import nn

from dcil_dsl import InputError, load_cpu
from dcil_dsl.extras.cpu import build, network
from dcil_dsl.extras.cpu.export import build_program, read, verify, write
from dcil_dsl.extras.cpu.program import ProgramLayer
from dcil_dsl.model.inputs import Inputs


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def test_a_folder_holds_data_alone_and_computes_what_the_model_computes(tmp_path):
    model = pruned(net(), 0.8)
    exported = write(model, (X,), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "program.json",
        "weights.safetensors",
    ]
    assert exported.difference < 1e-6 and exported.rounding == 0
    assert_as_exact_as_torch(model, load_cpu(tmp_path, kernels="c"), (X,), 1e-6)


def test_norms_become_part_of_their_layers():
    program, tensors = build_program(pruned(net(), 0.8), Inputs.of(X))
    layers = [op for op in program.operations if isinstance(op, ProgramLayer)]
    assert [layer.activation for layer in layers] == ["relu", "relu6", None]
    assert not any("norm" in str(op) for op in program.operations)
    assert (tensors[layers[0].weight] == 0).float().mean() == pytest.approx(0.8, abs=0.01)


def test_exporting_does_not_change_the_model(tmp_path):
    model = pruned(net(), 0.8).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(model, (X,), tmp_path)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_weights_take_the_room_of_their_kept_values(tmp_path):
    model = pruned(nn.Linear(1000, 1000), 0.9)
    full = write(model, (torch.randn(2, 1000),), tmp_path / "a")
    half = write(model, (torch.randn(2, 1000),), tmp_path / "b", weights="bfloat16")
    bias = 4000
    assert full.num_bytes == 1_000_000 // 8 + 100_000 * 4 + bias
    assert half.num_bytes == 1_000_000 // 8 + 100_000 * 2 + bias
    assert full.num_bytes_dense == 4_000_000 + bias
    assert half.difference < 1e-6 < half.rounding < 1e-2
    assert (tmp_path / "b" / "weights.safetensors").stat().st_size < half.num_bytes + 1000


def test_the_example_sets_every_size_but_the_batch(tmp_path):
    write(pruned(net(), 0.8), (X[:1],), tmp_path)
    loaded = load_cpu(tmp_path)
    for batch in (1, 2, 5):
        assert loaded(torch.zeros(batch, 3, 10, 10)).shape == (batch, 10)
    with pytest.raises(InputError, match="batch, 3, 10, 10"):
        loaded(torch.zeros(1, 3, 11, 10))


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.own = forward
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.own(self, x)


REFUSED = {
    "a function that has no word": (lambda m, x: torch.linalg.svd(m.linear(x))[0], "svd"),
    "random numbers": (lambda m, x: m.linear(x) + torch.randn(4), "rand"),
    "a branch on a value": (lambda m, x: m.linear(x) if x.sum() > 0 else x, "traced"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_a_program_cannot_say_is_refused_by_name(tmp_path, case):
    forward, word = case
    with pytest.raises(InputError, match=word):
        write(Odd(forward).eval(), (torch.randn(2, 4),), tmp_path)
    assert not (tmp_path / "program.json").exists()


def test_another_type_of_stored_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="bfloat16"):
        write(net().eval(), (X,), tmp_path, weights="int3")


def test_the_table_says_where_each_layer_runs_and_why(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(400, 3)).double()
    write(pruned(model, 0.5), (X.double(),), tmp_path)
    shown = verify(tmp_path)
    assert "float64; the kernels take float32" in shown
    write(pruned(model.float(), 0.5), (X,), tmp_path)
    shown = verify(tmp_path)
    assert "float64" not in shown and "50.0%" in shown and "sparse" in shown


def test_a_network_in_float64_runs_through_torch(tmp_path):
    model = pruned(net().double(), 0.5)
    write(model, (X.double(),), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(read(tmp_path)(X.double()), model(X.double()))


@pytest.fixture
def without_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    build.load_library.cache_clear()
    yield
    build.load_library.cache_clear()


def test_without_a_compiler_torch_runs_every_layer_and_one_warning_says_so(
    tmp_path, without_compiler
):
    model = pruned(net(), 0.8)
    write(model, (X,), tmp_path / "out")
    with pytest.warns(UserWarning, match="no C compiler is installed") as caught:
        loaded = load_cpu(tmp_path / "out")
    assert len(caught) == 1
    assert {line.where for line in loaded.lines()} == {"torch"}
    assert_as_exact_as_torch(model, loaded, (X,), 1e-6)


def test_a_compiler_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("CC", "false")
    build.load_library.cache_clear()
    with pytest.warns(UserWarning, match="does not compile"):
        network_of(pruned(net(), 0.5), (X,))
    build.load_library.cache_clear()


def test_the_kernels_are_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_library.cache_clear()
    build.load_library()
    files = list((tmp_path / "dcil" / "cpu").iterdir())
    build.load_library.cache_clear()
    before = [file.stat().st_mtime_ns for file in files]
    build.load_library()
    build.load_library.cache_clear()
    assert len(files) == 1 and [file.stat().st_mtime_ns for file in files] == before


def test_a_cache_folder_that_others_can_write_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "dcil" / "cpu"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    build.load_library.cache_clear()
    assert isinstance(build.load_library(), build.Library)
    build.load_library.cache_clear()
    assert list(folder.iterdir()) == []


def test_loading_imports_and_runs_nothing_of_the_folder(tmp_path, monkeypatch):
    write(pruned(net(), 0.8), (X,), tmp_path)
    (tmp_path / "program.py").write_text("raise SystemExit")
    (tmp_path / "__init__.py").write_text("raise SystemExit")
    program = json.loads((tmp_path / "program.json").read_text())
    assert set(program) <= {
        "format", "model", "inputs", "constants", "operations", "outputs", "digest"
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.load_cpu(tmp_path)(X)
