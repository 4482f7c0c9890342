"""Folders from strangers: what is no file, names that are no text, programs without end."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cpu_nets import pruned
from torch import nn

from dcil_dsl import InputError, load_cpu
from dcil_dsl.exporting.exporters import exporter_for
from dcil_dsl.extras.cpu.export import verify, write

FILES = ("program.json", "weights.safetensors")
ESCAPE = "conv\x1b[2J"  # clears a terminal


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)]
    write(pruned(nn.Sequential(*layers, nn.Softmax(1)), 0.6), (torch.randn(2, 3, 6, 6),), folder)
    program = json.loads((folder / "program.json").read_text())
    return program, load_file(folder / "weights.safetensors")


def stored(folder, program, tensors, header=None):
    (folder / "program.json").write_text(
        program if isinstance(program, str) else json.dumps(program)
    )
    save_file(tensors, folder / "weights.safetensors", header)
    return folder


def refused(folder, program, tensors):
    with pytest.raises(InputError) as error:
        load_cpu(stored(folder, program, tensors))(torch.zeros(1, 3, 6, 6))
    assert error.value.message.isprintable()
    return error.value.message


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_refused(exported, tmp_path, name):
    stored(tmp_path, *exported)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="is not a file"):
        load_cpu(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(exported, tmp_path, name):
    stored(tmp_path, *exported)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        load_cpu(tmp_path)


def layer(program):
    return next(op for op in program["operations"] if op["op"] != "torch")


def call(program):
    return next(op for op in program["operations"] if op["op"] == "torch")


ESCAPES = {
    "the model": lambda p: p.update(model=ESCAPE),
    "a layer": lambda p: layer(p).update(layer=ESCAPE),
    "a value": lambda p: layer(p).update(input=ESCAPE),
    "a weight": lambda p: layer(p).update(weight=ESCAPE),
    "a function": lambda p: call(p).update(function=f"aten.{ESCAPE}"),
    "a keyword": lambda p: call(p).update(kwargs={ESCAPE: 1}),
    "an argument": lambda p: call(p)["args"].append({"value": ESCAPE}),
}


@pytest.mark.parametrize("change", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_name_that_writes_to_the_terminal_is_refused_and_not_printed(exported, tmp_path, change):
    program = copy.deepcopy(exported[0])
    change(program)
    refused(tmp_path, program, exported[1])


def test_a_tensor_whose_name_writes_to_the_terminal_is_refused(exported, tmp_path):
    tensors = {**exported[1], ESCAPE: torch.zeros(1)}
    assert "cannot be printed" in refused(tmp_path, exported[0], tensors)


@pytest.mark.parametrize("depth", [150, 400, 900, 5000])
def test_an_argument_that_is_nested_without_end_is_refused(exported, tmp_path, depth):
    program = copy.deepcopy(exported[0])
    call(program)["args"].append("DEEP")
    refused(tmp_path, json.dumps(program).replace('"DEEP"', "[" * depth + "]" * depth), exported[1])


def test_a_division_by_zero_is_refused(exported, tmp_path):
    program = copy.deepcopy(exported[0])
    zero = {"op": "torch", "function": "integer.floordiv", "args": [2, 0], "outputs": ["q"]}
    program["operations"].append(zero)
    assert "ZeroDivisionError" in refused(tmp_path, program, exported[1])


def test_a_program_of_thousands_of_operations_is_planned_and_run(exported, tmp_path):
    """Planning looks at each value where it is read, never at all of them for each operation."""
    program = copy.deepcopy(exported[0])
    network = load_cpu(stored(tmp_path, *exported), kernels="c")
    x = torch.randn(1, 3, 6, 6)
    expected, last = network(x), program["outputs"]["value"]
    for number in range(3001):
        program["operations"].append(
            {
                "op": "torch",
                "function": "aten.neg.default",
                "args": [{"value": last}],
                "outputs": [f"n{number}"],
            }
        )
        last = f"n{number}"
    program["outputs"] = {"value": last}
    network = load_cpu(stored(tmp_path, program, exported[1]), kernels="c")
    assert torch.equal(network(x), -expected)


def test_a_header_that_is_not_one_is_refused_where_promises_are_read(exported, tmp_path):
    folder = stored(tmp_path, *exported, header={"dcil": '{"format": 2'})
    with pytest.raises(InputError, match="the header of"):
        exporter_for(folder).read(folder)
    assert "2 layers" in verify(folder)  # the tensors are those of the program
