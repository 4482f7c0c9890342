"""OpenVINO's files compute as the network, and every zero stays a zero, also in int8."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.library import needed
from support.tiny_job import call, net, own, whole_run
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for
from dcil_dsl.exporting.files import read_safetensors
from dcil_dsl.extras.formats import onnx_int8, openvino_ir
from dcil_dsl.extras.formats.onnx_file import build_onnx
from dcil_dsl.plan.plan import Size

openvino = needed("openvino")
needed("onnx"), needed("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = whole_run(tmp_path_factory.mktemp("job"))
    for name in ("openvino", "openvino-int8"):
        assert call("export", folder / "run", "--to", name, *own(folder)) == 0
    return folder


@pytest.fixture
def dense(folder, tmp_path):
    return shutil.copytree(folder / "run" / "openvino", tmp_path / "dense")


@pytest.fixture
def coded(folder, tmp_path):
    return shutil.copytree(folder / "run" / "openvino-int8", tmp_path / "coded")


@pytest.fixture
def original(folder):
    model = net(folder)
    model.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    return model.eval()


def outputs(place, x, **settings):
    network = openvino.Core().compile_model(place / "openvino.xml", "CPU", settings)
    return torch.from_numpy(np.array(network([x.numpy()])[0]))


def test_the_folder_computes_as_the_network_for_any_batch_size(dense, original):
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        found = outputs(dense, x, INFERENCE_PRECISION_HINT="f32")
        torch.testing.assert_close(found, original(x), rtol=1e-4, atol=1e-5)


def test_verify_counts_the_zeros_of_both_folders(dense, coded, original, capsys):
    for place in (dense, coded):
        assert call("verify", place) == 0
        assert "3.weight" in capsys.readouterr().out
        tensors = exporter_for(place).read(place).tensors
        for name in ("0.weight", "3.weight"):
            pruned = original.state_dict()[name] == 0
            assert not tensors[name][pruned].any() and tensors[name].any(), name


def test_int8_is_stored_as_codes_and_is_near_to_float32(coded, original):
    model = openvino.Core().read_model(coded / "openvino.xml")
    types = {
        op.get_friendly_name(): op.get_element_type().get_type_name()
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    }
    assert types["0.weight_quantized"] == types["3.weight_quantized"] == "i8"
    x = torch.randn(8, 3, 32, 32)
    exact = original(x)
    assert (outputs(coded, x) - exact).abs().max() < 0.1 * (1 + exact.abs().max())


def test_the_snippet_of_the_page_loads_the_folder_with_sparse_weights(coded):
    x = torch.randn(2, 3, 32, 32)
    found = outputs(coded, x, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=0.8)
    torch.testing.assert_close(found, outputs(coded, x), rtol=1e-3, atol=1e-3)


def test_other_weights_are_a_fault(coded, capsys):
    model = openvino.Core().read_model(coded / "openvino.xml")
    codes = next(op for op in model.get_ops() if op.get_friendly_name() == "3.weight_quantized")
    stored, file = np.array(codes.data).tobytes(), coded / "openvino.bin"
    del model, codes  # they may hold the file open
    assert file.read_bytes().count(stored) == 1
    file.write_bytes(file.read_bytes().replace(stored, b"\1" * len(stored)))
    assert call("verify", coded) == 1
    assert "revived or never pruned" in capsys.readouterr().out


def test_another_graph_is_a_fault(dense, capsys):
    file = dense / "openvino.xml"
    file.write_text(file.read_text().replace('type="ReLU"', 'type="Sigmoid"'))
    assert call("verify", dense) == 1
    assert "the graph is not the one that was exported" in capsys.readouterr().out


def larger(text):
    return re.sub(r'shape="32, ?16', 'shape="3200000000, 16', text)


def beyond(text):
    return re.sub(r'offset="\d+"', 'offset="99999999999"', text)


def own_operation(text):
    return text.replace('type="ReLU"', 'type="Mine"')


@pytest.mark.parametrize(
    "change",
    [larger, beyond, own_operation, lambda text: text[: len(text) // 2], lambda text: ""],
)
def test_a_hostile_graph_is_refused(dense, change):
    file = dense / "openvino.xml"
    changed = change(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    with pytest.raises(InputError, match="damaged"):
        exporter_for(dense).read(dense)


def test_a_folder_of_another_network_is_a_fault_of_the_run(folder, tmp_path):
    other = whole_run(tmp_path, seed=1)
    assert call("export", other / "run", "--to", "openvino", *own(other)) == 0
    place, kept = folder / "run" / "openvino", tmp_path / "kept"
    place.rename(kept)
    shutil.copytree(other / "run" / "openvino", place)
    assert call("verify", place) == 1
    shutil.rmtree(place)
    kept.rename(place)


def test_the_accuracy_of_int8_is_measured_in_openvino(folder, tmp_path, monkeypatch, capsys):
    """Another engine may compute other numbers from the same codes."""
    built = []
    monkeypatch.setattr(openvino_ir, "_compiled", counted(openvino_ir._compiled, built))
    asked = ("--to", "openvino-int8", "--out", tmp_path / "again", *own(folder))
    assert call("export", folder / "run", *asked) == 0
    assert len(built) == 2 and "held-out examples: float32" in capsys.readouterr().out


def counted(function, calls):
    def counting(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counting


def test_a_grouped_convolution_is_counted_under_its_name(folder, tmp_path):
    """OpenVINO stores its weights in another shape under a name of its own."""
    origin = read_safetensors(folder / "run" / "sparse.safetensors")[1]
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    )
    with torch.no_grad():
        for layer in net:
            layer.weight[torch.rand(layer.weight.shape) < 0.7] = 0
    names = ("0.weight", "1.weight", "2.weight")
    num_weights = tuple(layer.weight.numel() for layer in net)
    changes = {"parameters": names, "num_weights": num_weights, "keeps": (sum(num_weights),)}
    promise = origin.promises[0].model_copy(update=changes)
    sizes = {"x": Size(shape=(1, 8, 9, 9), dtype="float32")}
    origin = origin.model_copy(update={"promises": (promise,), "sizes": sizes})
    EXPORTERS["openvino"].write(Deployed(net, origin), tmp_path / "a")
    found = EXPORTERS["openvino"].read(tmp_path / "a").tensors
    for name in names:
        assert torch.equal(found[name], net.state_dict()[name]), name


class Scaled(nn.Module):
    """A scale behind a layer, as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        return x + self.scale * self.second(self.first(x).relu())


def test_a_weight_that_openvino_scales_is_counted_under_its_name(folder, tmp_path):
    torch.manual_seed(0)
    net, origin = Scaled(), read_safetensors(folder / "run" / "sparse.safetensors")[1]
    names = ("first.weight", "second.weight")
    with torch.no_grad():
        for layer in (net.first, net.second):
            layer.weight[torch.rand(8, 8) < 0.7] = 0
    changes = {"parameters": names, "num_weights": (64, 64), "keeps": (128,)}
    promise = origin.promises[0].model_copy(update=changes)
    sizes = {"x": Size(shape=(1, 8), dtype="float32")}
    origin = origin.model_copy(update={"promises": (promise,), "sizes": sizes})
    EXPORTERS["openvino"].write(Deployed(net, origin), tmp_path / "a")
    found = EXPORTERS["openvino"].read(tmp_path / "a").tensors
    for name in names:
        assert torch.equal(found[name] == 0, net.state_dict()[name] == 0), name


class Twice(nn.Module):
    """One weight in two calls, and its transpose in a third."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return (x @ self.table).relu() @ self.table + x @ self.table.T


def test_an_int8_weight_that_two_operations_read_is_counted(folder, tmp_path):
    torch.manual_seed(0)
    net, origin = Twice(), read_safetensors(folder / "run" / "sparse.safetensors")[1]
    with torch.no_grad():
        net.table[torch.rand(8, 8) < 0.7] = 0
    sizes = {"x": Size(shape=(1, 8), dtype="float32")}
    deployed = Deployed(net, origin.model_copy(update={"promises": (), "sizes": sizes}))
    dense, places, _, _ = build_onnx(deployed)
    coded = onnx_int8.quantise(dense, [[torch.randn(64, 8)]])
    names = onnx_int8.coded_places(coded, places)
    openvino_ir.save_ir(openvino_ir.convert(coded), coded, names, deployed, tmp_path / "a")
    found = EXPORTERS["openvino"].read(tmp_path / "a").tensors["table"]
    assert torch.equal(found == 0, net.table == 0)


def test_a_shape_of_the_header_that_does_not_fit_is_refused(dense):
    header = json.loads((dense / "dcil.json").read_text())
    header["shapes"] = {"3.weight": [1 << 40]}
    (dense / "dcil.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="has not the shape"):
        exporter_for(dense).read(dense)


def test_scales_that_would_blow_up_a_weight_are_refused(coded):
    """The constant of the scales claims another shape of the same size."""
    file = coded / "openvino.xml"
    changed = re.sub(r'shape="32, ?1, ?1, ?1"', 'shape="1, 1, 1, 32"', file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    with pytest.raises(InputError, match="scales do not fit|damaged"):
        exporter_for(coded).read(coded)


def test_a_missing_or_damaged_file_is_refused(dense, coded):
    (dense / "openvino.bin").unlink()
    with pytest.raises(InputError, match="there is no openvino.bin"):
        exporter_for(dense).read(dense)
    (coded / "openvino.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        exporter_for(coded).read(coded)


def test_a_damaged_header_is_refused(dense):
    (dense / "dcil.json").write_text("{}")
    assert call("verify", dense) == 2


class Positions(nn.Module):
    """A table of which a part is read: OpenVINO stores the part alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x + self.table[:3])


def test_a_folded_constant_is_refused_only_where_its_zeros_are_promised(folder, tmp_path):
    origin = read_safetensors(folder / "run" / "sparse.safetensors")[1]
    sizes = {"x": Size(shape=(1, 3, 4), dtype="float32")}
    alone = origin.model_copy(update={"promises": (), "sizes": sizes})
    EXPORTERS["openvino"].write(Deployed(Positions(), alone), tmp_path / "a")
    assert "table" not in EXPORTERS["openvino"].read(tmp_path / "a").tensors
    promise = origin.promises[0].model_copy(update={"parameters": ("table", "linear.weight")})
    promised = alone.model_copy(update={"promises": (promise,)})
    with pytest.raises(InputError, match="would hold no tensor `table`"):
        EXPORTERS["openvino"].write(Deployed(Positions(), promised), tmp_path / "b")


def test_a_missing_library_names_the_extra(dense, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="`openvino` needs the library") as found:
        EXPORTERS["openvino"].read(dense)
    assert found.value.help == "pip install 'dcil-dsl[openvino]'"
