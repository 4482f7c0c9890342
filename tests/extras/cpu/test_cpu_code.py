"""Machine code that this process writes: never writable and executable at once, and exact."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cpu_nets import network_of_layers, pruned
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
