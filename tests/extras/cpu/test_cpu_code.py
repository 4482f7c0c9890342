"""Machine code that this process writes: never writable and executable at once, and exact."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cpu_nets import assert_as_exact_as_torch, network_of, network_of_layers, pruned
from torch import nn

from dcil_dsl.extras.cpu import code, executable, generate
from dcil_dsl.extras.cpu.build import load_library
from dcil_dsl.extras.cpu.executable import Executable, can_execute
from dcil_dsl.extras.cpu.segment import NativeSegment
from dcil_dsl.extras.cpu.structs import StructKind

needs_x86 = pytest.mark.skipif(not can_execute(), reason="x86-64 Linux alone")


def rights_of(address):
    """The rights of the memory at an address, from the system; None where there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split()[1][:3]
    return None


@needs_x86
def test_code_is_never_writable_and_executable_at_once():
    made = Executable([b"\xc3", b"\xc3" * 100])
    assert made.addresses[1] - made.addresses[0] == 64
    assert {rights_of(address) for address in made.addresses} == {"r-x"}


@needs_x86
def test_code_is_given_back_with_its_network():
    made = Executable([b"\xc3" * 2**22])
    address = made.addresses[0] + 2**21
    assert rights_of(address) == "r-x"
    del made
    gc.collect()
    assert rights_of(address) != "r-x"


def kinds(network):
    network(torch.zeros(1, 4, 6, 6))
    (plan,) = network._plans.values()
    (step, _), *_ = plan.steps
    assert isinstance(step, NativeSegment)
    return {op.kind for op in step.table} - {StructKind.COPY}


@needs_x86
def test_a_layer_gets_code_of_its_own_with_avx512_and_else_a_kernel_in_c():
    network = network_of_layers(pruned(nn.Conv2d(4, 40, 3), 0.5), shape=(1, 4, 6, 6))
    network.kernels = "generated"
    library = load_library()
    assert kinds(network) == {StructKind.CODE if library.lanes == 16 else StructKind.CONV}


@needs_x86
@pytest.mark.parametrize("part", [1, 7, 100])
def test_code_in_many_parts_gives_the_numbers_of_code_in_one(part, monkeypatch):
    """The sums of a part lie in the output until the next part adds to them."""
    layers = [
        pruned(nn.Conv2d(5, 40, 3, padding=1), 0.5),
        pruned(nn.Conv2d(40, 30, 1, stride=2), 0.9),
    ]
    x = torch.randn(3, 5, 17, 17, generator=torch.Generator().manual_seed(0))
    results = []
    for most in (10**9, part):
        monkeypatch.setattr(generate, "PART", most)
        for threads in (1, 2, 3):
            network = network_of_layers(*layers, shape=x.shape)
            network.kernels, network.threads = "generated", threads
            results.append(network(x))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_x86
@pytest.mark.parametrize("outer", [1, 7, 16, 40])
@pytest.mark.parametrize("inner", [1, 9, 16, 33])
@pytest.mark.parametrize("rows", [17, 32, 150])
def test_a_linear_layer_by_code_is_as_exact_as_torch(rows, inner, outer, monkeypatch):
    monkeypatch.setattr(generate, "PART", 11)
    layer = pruned(nn.Linear(inner, outer), 0.5)
    x = torch.randn(rows, inner, generator=torch.Generator().manual_seed(0))
    network = network_of_layers(layer, shape=x.shape)
    network.kernels = "generated"
    results = []
    for threads in (1, 2, 3):
        network.threads = threads
        assert_as_exact_as_torch(layer, network, (x,), 1e-7)
        results.append(network(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_x86
@pytest.mark.parametrize("activation", [None, "relu", "relu6", "gelu"])
def test_activation_and_residual_of_a_linear_layer_by_code(activation):
    model = LinearAndMore(activation)
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    network = network_of(pruned(model, 0.6), (x,), kernels="generated")
    assert_as_exact_as_torch(model, network, (x,), 1e-6)
    poison = x.clone()
    poison[3] = float("nan")
    assert network(poison).isnan().any(1).nonzero().flatten().tolist() == [3]


class LinearAndMore(nn.Module):
    """A layer with an activation, and one with a residual sum."""

    def __init__(self, activation):
        super().__init__()
        self.one, self.two = nn.Linear(24, 50), nn.Linear(50, 24)
        kinds = {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "gelu": nn.GELU()}
        self.act = kinds.get(activation, nn.Identity())

    def forward(self, x):
        return x + self.two(self.act(self.one(x)))


@needs_x86
def test_code_on_huge_pages_is_never_writable_and_executable_at_once():
    made = Executable([b"\xc3" * 3 * 2**20])
    assert made.addresses[0] % executable.HUGE == 0
    assert {rights_of(made.addresses[0]), rights_of(made.end - 1)} == {"r-x"}


def test_where_the_system_forbids_code_the_kernel_in_c_runs(monkeypatch):
    def forbidden(routines):
        raise OSError(13, "forbidden")

    monkeypatch.setattr(generate, "Executable", forbidden)
    network = network_of_layers(pruned(nn.Conv2d(4, 40, 3), 0.5), shape=(1, 4, 6, 6))
    network.kernels = "generated"
    assert kinds(network) == {StructKind.CONV}


def test_other_systems_get_no_code(monkeypatch):
    monkeypatch.setattr(executable.platform, "machine", lambda: "aarch64")
    assert not can_execute()


@pytest.mark.parametrize(
    "offset",
    [0, 508, -512, 512, -516, 6],
)
def test_a_displacement_takes_one_byte_where_it_fits(offset):
    """One byte counts units of four: from -128 to 127 of them."""
    lines = code.memory(code.MULTIPLY_ADD, np.array([3]), np.array([30]), 6, np.array([offset]))
    short = offset % 4 == 0 and -512 <= offset <= 508
    assert lines.lengths[0] == (7 if short else 10)
    stored = lines.rows[0][6:]
    number = int.from_bytes(bytes(stored[:1] if short else stored[:4]), "little", signed=True)
    assert number == (offset // 4 if short else offset)
