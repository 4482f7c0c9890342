"""A lowered network is bound to its program by digest, and int8 zeros are codes at zero points."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_job import call, net, whole_run
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operations

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.exporting.exporters import exporter_for
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.formats.archive import GRAPH
from dcil_dsl.extras.formats.graph import read_names
from dcil_dsl.extras.formats.lowered import HEADER, LoweredFile, save_lowered

OPS = torch.ops.quantized_decomposed


class Coded(nn.Module):
    """Two weights in int8: one with a scale for each channel, one with a scale for all."""

    def __init__(self, weights, zero=0):
        super().__init__()
        self.zero = zero
        for index, weight in enumerate(weights):
            scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 100 + 1e-6
            codes = (weight / (scale if index == 0 else scale.max())).round().to(torch.int8) + zero
            self.register_buffer(f"codes_{index}", codes)
            self.register_buffer(f"scale_{index}", scale.flatten())
        self.register_buffer("zeros", torch.full((len(weights[0]),), zero))

    def forward(self, x):
        first = OPS.dequantize_per_channel(
            self.codes_0, self.scale_0, self.zeros, 0, -128, 127, torch.int8
        )
        second = OPS.dequantize_per_tensor(self.codes_1, 0.01, self.zero, -128, 127, torch.int8)
        x = nn.functional.conv2d(x, first, stride=2).relu()
        return nn.functional.conv2d(x, second, stride=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    return whole_run(tmp_path_factory.mktemp("job"))


def lowered(run, place, zero=0):
    """A folder as a device's tools leave it, without their library."""
    file = run / "run" / "sparse.safetensors"
    tensors, origin = load_file(file), read_safetensors(file)[1]
    coded = Coded([tensors["0.weight"], tensors["3.weight"]], zero)
    program = torch.export.export(coded, (torch.randn(1, 3, 32, 32),))
    names = {"0.weight": "codes_0", "3.weight": "codes_1"}
    save_lowered(LoweredFile(program, names, b"lowered"), Deployed(net(run), origin), place)
    return place


@pytest.mark.parametrize("zero", [0, 3])
def test_zeros_are_the_codes_at_the_zero_point(run, tmp_path, capsys, zero):
    place = lowered(run, tmp_path / "coded", zero)
    assert call("verify", place) == 0
    assert "3.weight" in capsys.readouterr().out
    found = exporter_for(place).read(place).tensors
    for name, tensor in load_file(run / "run" / "sparse.safetensors").items():
        if name in found:
            assert not found[name][tensor == 0].any() and found[name].any(), name
    assert found.keys() == {"0.weight", "3.weight"}


def test_another_lowered_file_is_a_fault(run, tmp_path, capsys):
    place = lowered(run, tmp_path / "coded")
    (place / "network.pte").write_bytes(b"another network")
    assert call("verify", place) == 1
    assert "network.pte was not lowered from program.pt2" in capsys.readouterr().out
    (place / "network.pte").unlink()
    assert call("verify", place) == 2


def promised(origin, model, names):
    """The promise of a run, of other weights."""
    num_weights = tuple(model.state_dict()[name].numel() for name in names)
    changes = {"parameters": names, "num_weights": num_weights, "keeps": (sum(num_weights),)}
    return origin.promises[0].model_copy(update=changes)


class Tied(nn.Module):
    """A recurrent layer, whose weights its call has in a list, and two names of one weight."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.lstm(x)[0]))


def test_weights_of_a_list_and_tied_ones_are_counted_under_every_name(run, tmp_path):
    model = Tied()
    names = ("first.weight", "second.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0")
    origin = read_safetensors(run / "run" / "sparse.safetensors")[1]
    promise = promised(origin, model, names)
    deployed = Deployed(model, origin.model_copy(update={"promises": (promise,)}))
    program = torch.export.export(model, (torch.randn(1, 3, 4),))
    made = LoweredFile(program, read_names(program), b"lowered")
    save_lowered(made, deployed, tmp_path / "tied")
    found = exporter_for(tmp_path / "tied").read(tmp_path / "tied").tensors
    for name in names:
        assert torch.equal(found[name], model.state_dict()[name]), name
    with pytest.raises(InputError, match="would hold no tensor `first.weight"):
        save_lowered(LoweredFile(program, {}, b"lowered"), deployed, tmp_path / "none")


def edited(place, change):
    """The folder with the JSON of one file of the archive changed in place."""
    file = place / "program.pt2"
    with zipfile.ZipFile(file) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in parts.items():
            new.writestr(name, change(name.partition("/")[2], data))
    return place


def test_a_weight_that_no_call_reads_is_missing(run, tmp_path, capsys):
    def change(name, data):
        return data.replace(b"codes_1", b"codes_9") if name.endswith(HEADER) else data

    assert call("verify", edited(lowered(run, tmp_path / "coded"), change)) == 1
    assert "3.weight is missing" in capsys.readouterr().out


def in_graph(change):
    """A change of the first call that dequantizes."""

    def edit(name, data):
        if name != GRAPH:
            return data
        program = json.loads(data)
        nodes = program["graph_module"]["graph"]["nodes"]
        change(next(node for node in nodes if "dequantize_per_channel" in node["target"]))
        return json.dumps(program).encode()

    return edit


def test_a_moved_zero_point_is_a_fault(run, tmp_path, capsys):
    """The codes are as they were, and stand for other numbers."""
    place = lowered(run, tmp_path / "coded")

    def change(name, data):
        program = json.loads(data) if name == GRAPH else None
        if program is None:
            return data
        for node in program["graph_module"]["graph"]["nodes"]:
            if "dequantize_per_tensor" in node["target"]:
                node["inputs"][2]["arg"] = {"as_int": 1}
        return json.dumps(program).encode()

    assert call("verify", edited(place, change)) == 1
    assert "revived or never pruned" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, says",
    [
        (in_graph(lambda node: node.update(target="torch.ops.mine.op")), "reads integer weights"),
        (in_graph(lambda node: node["inputs"].__delitem__(slice(2, None))), "reads integer"),
        (in_graph(lambda node: node["inputs"][1].update(arg={"as_none": True})), "are missing"),
        (in_graph(lambda node: node["inputs"][3].update(arg={"as_int": 9})), "do not fit"),
        (in_graph(lambda node: node["inputs"][3].update(arg={"as_int": 1})), "do not fit"),
        (lambda name, data: b"{}" if name == GRAPH else data, "graph of .* is damaged"),
        (lambda name, data: b"[" * 9999 if name == GRAPH else data, "graph of .* is damaged"),
        (lambda name, data: b"{" if name.endswith(HEADER) else data, "header of .* is damaged"),
        (lambda name, data: b"\xff" if name.endswith(HEADER) else data, "damaged"),
    ],
)
def test_a_hostile_program_is_refused(run, tmp_path, change, says):
    place = edited(lowered(run, tmp_path / "coded"), change)
    with pytest.raises(InputError, match=says):
        exporter_for(place).read(place)


def test_a_program_that_vouches_for_nothing_is_refused(run, tmp_path):
    place = lowered(run, tmp_path / "coded")
    torch.export.save(
        torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), place / "program.pt2"
    )
    with pytest.raises(InputError, match="does not say which network was lowered"):
        exporter_for(place).read(place)
    (place / "program.pt2").write_bytes(b"PK truncated")
    with pytest.raises(InputError, match="damaged"):
        exporter_for(place).read(place)
