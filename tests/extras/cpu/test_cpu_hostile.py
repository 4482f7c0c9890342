"""A folder is data from anywhere: what does not fit is refused before a kernel gets a pointer."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.cpu_nets import network_of, pruned
from torch import nn

from dcil_dsl import InputError, load_cpu
from dcil_dsl.extras.cpu.export import write


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 5),
        nn.Softmax(1),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    model = pruned(small_network(), 0.6)
    write(model, (torch.randn(2, 3, 12, 12),), folder)
    program = json.loads((folder / "program.json").read_text())
    return folder, program, load_file(folder / "weights.safetensors")


def refused(tmp_path, exported, program=None, tensors=None):
    """The error of a folder with other files."""
    folder, good, own = exported
    (tmp_path / "program.json").write_text(
        program if isinstance(program, str) else json.dumps(program or good)
    )
    save_file(tensors or own, tmp_path / "weights.safetensors")
    with pytest.raises(InputError) as error:
        network = load_cpu(tmp_path)
        network(torch.zeros(2, 3, 12, 12))  # torch checks a few arguments only with numbers
    assert "\n" not in error.value.message
    return error.value.message


def at(program, path):
    """The part of a program at a path, and its last key."""
    *front, last = path
    for key in front:
        program = program[key]
    return program, last


CONV, POOL, LINEAR, SOFTMAX = 1, 2, 4, 5
CHANGES = {
    "a stride of zero": (("operations", CONV, "stride"), [0, 1]),
    "a negative stride": (("operations", CONV, "stride"), [-1, 1]),
    "a huge stride": (("operations", CONV, "stride"), [2**40, 1]),
    "a negative padding": (("operations", CONV, "padding"), [-5, 0]),
    "a huge padding": (("operations", CONV, "padding"), [2**31, 2**31]),
    "a padding that takes all memory": (("operations", CONV, "padding"), [2**15, 2**15]),
    "a dilation beyond the image": (("operations", CONV, "dilation"), [50, 50]),
    "groups that do not divide": (("operations", CONV, "groups"), 7),
    "groups of zero": (("operations", CONV, "groups"), 0),
    "a fraction as a size": (("operations", CONV, "stride"), [1.5, 1]),
    "text as a size": (("operations", CONV, "stride"), "1"),
    "another layer": (("operations", CONV, "op"), "conv9d"),
    "another activation": (("operations", CONV, "activation"), "exec"),
    "a weight of another shape": (("operations", CONV, "weight"), "4.weight"),
    "a bias of another shape": (("operations", CONV, "bias"), "4.bias"),
    "a missing weight": (("operations", CONV, "weight"), "nowhere"),
    "a residual sum of another shape": (("operations", LINEAR, "add"), "input"),
    "a value from later": (("operations", CONV, "input"), "softmax"),
    "an operation that reads itself": (("operations", CONV, "input"), "relu"),
    "a value that is defined twice": (("operations", CONV, "output"), "input"),
    "a missing value": (("operations", CONV, "input"), "nowhere"),
    "an unknown function": (("operations", SOFTMAX, "function"), "os.system"),
    "a function of torch that writes": (
        ("operations", SOFTMAX, "function"),
        "aten.set_.source_Tensor",
    ),
    "a function of torch that draws": (("operations", SOFTMAX, "function"), "aten.rand.default"),
    "a function that is an attribute": (("operations", SOFTMAX, "function"), "aten.__class__.mro"),
    "another dimension": (("operations", SOFTMAX, "args", 1), 17),
    "a huge number": (("operations", SOFTMAX, "args", 1), 10**400),
    "a number of 64 bits": (("operations", SOFTMAX, "args", 1), 2**63),
    "a missing argument": (("operations", SOFTMAX, "args"), []),
    "too many arguments": (("operations", SOFTMAX, "args"), [{"value": "linear"}] * 9),
    "an argument that is a program": (("operations", SOFTMAX, "args", 1), {"import": "os"}),
    "a keyword of no function": (("operations", SOFTMAX, "kwargs"), {"out": {"value": "linear"}}),
    "results that it does not give": (("operations", SOFTMAX, "outputs"), ["a", "b"]),
    "no results": (("operations", SOFTMAX, "outputs"), []),
    "a pool with a huge window": (("operations", POOL, "args", 1), [10**6, 10**6]),
    "a pool with a negative window": (("operations", POOL, "args", 1), [-2, -2]),
    "a pool with a padding beyond its window": (("operations", POOL, "args", 3), [9, 9]),
    "an input of another size": (("inputs", 0, "shape"), [None, 3, 12, 24]),
    "an input without numbers": (("inputs", 0, "shape"), [None, 3, 0, 0]),
    "an input of too many numbers": (("inputs", 0, "shape"), [None, 3, 2**20, 2**20]),
    "an input of a negative size": (("inputs", 0, "shape"), [None, 3, -12, 12]),
    "an input of another type": (("inputs", 0, "dtype"), "object"),
    "an input of whole numbers": (("inputs", 0, "dtype"), "int64"),
    "an output that nothing defines": (("outputs",), {"value": "nowhere"}),
    "an output of another form": (("outputs",), {"pickle": "x"}),
    "a format from the future": (("format",), 99),
    "a field of no meaning": (("run",), "import os"),
    "a constant that is not stored": (("constants",), {"c": "nowhere"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_program_that_does_not_fit_is_refused(tmp_path, exported, change):
    path, value = change
    program = copy.deepcopy(exported[1])
    part, last = at(program, path)
    while isinstance(last, int) and last >= len(part):
        part.append([2, 2])
    part[last] = value
    refused(tmp_path, exported, program)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "\x00", '{"format": NaN}', "[" * 100_000, '{"a":' * 50_000, '"x"'],
    ids=range(9),
)
def test_text_that_is_not_a_program_is_refused(tmp_path, exported, text):
    refused(tmp_path, exported, text)


def test_an_output_that_is_nested_without_end_is_refused(tmp_path, exported):
    program = copy.deepcopy(exported[1])
    for _ in range(200):
        program["outputs"] = {"list": [program["outputs"]]}
    refused(tmp_path, exported, program)


def test_values_of_too_many_numbers_are_refused_before_they_are_made(tmp_path, exported):
    program = copy.deepcopy(exported[1])
    program["operations"].append(
        {
            "op": "torch",
            "function": "aten.full.default",
            "args": [[2**20, 2**20], 1.0],
            "outputs": ["big"],
        }
    )
    assert "too many" in refused(tmp_path, exported, program)


def test_numbers_that_grow_without_end_are_refused(tmp_path, exported):
    program = copy.deepcopy(exported[1])
    last = 2**40
    for index in range(9):
        name = f"n{index}"
        program["operations"].append(
            {"op": "torch", "function": "integer.mul", "args": [last, last], "outputs": [name]}
        )
        last = {"value": name}
    assert "bits" in refused(tmp_path, exported, program)


def weight(tensors):
    return next(key.removesuffix(":mask") for key in tensors if key.endswith(":mask"))


BAD_TENSORS = {
    "a mask with more ones than values": lambda t, w: {w + ":mask": t[w + ":mask"] | 255},
    "a mask that is too short": lambda t, w: {w + ":mask": t[w + ":mask"][:-1]},
    "a mask that is too long": lambda t, w: {w + ":mask": torch.cat([t[w + ":mask"]] * 2)},
    "a mask of whole numbers": lambda t, w: {w + ":mask": t[w + ":mask"].to(torch.int32)},
    "values of whole numbers": lambda t, w: {w + ":values": t[w + ":values"].to(torch.int32)},
    "fewer values": lambda t, w: {w + ":values": t[w + ":values"][:-1]},
    "more values": lambda t, w: {w + ":values": torch.cat([t[w + ":values"]] * 2)},
    "a negative shape": lambda t, w: {w + ":shape": -t[w + ":shape"]},
    "a huge shape": lambda t, w: {w + ":shape": t[w + ":shape"] * 2**40},
    "a shape that overflows": lambda t, w: {w + ":shape": torch.tensor([2**62, 2**62, 4])},
    "a shape of fractions": lambda t, w: {w + ":shape": t[w + ":shape"].float()},
    "another number": lambda t, w: {w + ":values": t[w + ":values"] + 1},
    "a tensor that nothing reads": lambda t, w: {"more": torch.zeros(2)},
    "values without a mask": lambda t, w: {"more:values": torch.zeros(2)},
}


@pytest.mark.parametrize("change", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_tensors_that_do_not_fit_are_refused(tmp_path, exported, change):
    tensors = exported[2]
    refused(tmp_path, exported, tensors={**tensors, **change(tensors, weight(tensors))})


def test_a_missing_tensor_is_refused(tmp_path, exported):
    for key in exported[2]:
        refused(tmp_path, exported, tensors={k: t for k, t in exported[2].items() if k != key})


@pytest.mark.parametrize("size", [0, 7, 100, 1000])
def test_a_truncated_file_is_refused(tmp_path, exported, size):
    (tmp_path / "program.json").write_text(json.dumps(exported[1]))
    whole = (exported[0] / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[:size])
    with pytest.raises(InputError):
        load_cpu(tmp_path)


def test_a_missing_file_is_refused(tmp_path, exported):
    with pytest.raises(InputError, match=r"program\.json"):
        load_cpu(tmp_path)
    (tmp_path / "program.json").write_text(json.dumps(exported[1]))
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        load_cpu(tmp_path)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1)], ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (2, 4, 2, 1), (2, 4)])
def test_a_kernel_refuses_a_tensor_of_another_shape_than_was_planned(layer, shape):
    """Whatever torch gives where its shape inference said something else."""
    x = torch.zeros(3, 4) if isinstance(layer, nn.Linear) else torch.zeros(3, 4, 2, 2)
    network = network_of(pruned(layer, 0.5), (x,))
    network(x)
    (plan,) = network._plans.values()
    (step, _), *_ = plan.steps
    for wrong in (torch.zeros(shape), x.double()):
        values = [None] * len(plan.places)
        values[plan.inputs[0]] = wrong
        with pytest.raises(InputError, match="planned"):
            step.run(values)


def leaves(value, path=()):
    """The paths of every part of a JSON structure."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, (*path, key))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_of_a_program_is_refused_or_runs(tmp_path, exported, data):
    """Never a crash, and never an error of another kind."""
    program = copy.deepcopy(exported[1])
    paths = [path for path in leaves(program) if path and path != ("digest",)]
    names = ["input", "relu", "max_pool2d", "view", "linear", "softmax", "0.weight", "4.bias"]
    for _ in range(data.draw(st.integers(1, 3))):
        part, last = program, None
        try:
            part, last = at(program, data.draw(st.sampled_from(paths)))
            part[last] = data.draw(
                st.one_of(
                    st.integers(-3, 70),
                    st.sampled_from([2**31, 2**63, -(2**70), 1e300, None, True, [], {}]),
                    st.sampled_from(names),
                    st.sampled_from(names).map(lambda name: {"value": name}),
                    st.lists(st.integers(-2, 9), max_size=4),
                )
            )
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the part away
    (tmp_path / "program.json").write_text(json.dumps(program))
    save_file(exported[2], tmp_path / "weights.safetensors")
    try:
        network = load_cpu(tmp_path)
        network(torch.zeros(2, 3, 12, 12))
    except InputError:
        pass


def test_inputs_of_a_call_that_do_not_fit_are_refused(exported):
    network = load_cpu(exported[0])
    good = torch.randn(2, 3, 12, 12)
    assert network(good).shape == (2, 5)
    bad = [
        (good[:, :2],),
        (good[0],),
        (good.double(),),
        (good.to("meta"),),
        (good.to_sparse(),),
        ("text",),
        (),
        (good, good),
    ]
    for given_inputs in bad:
        with pytest.raises(InputError):
            network(*given_inputs)
    with pytest.raises(InputError):
        network(y=good)
    assert network(good[:0]).shape == (0, 5)
    with pytest.raises(TypeError):
        copy.copy(network).__reduce__()
