"""ONNX files compute as the network in ONNX Runtime, and every zero stays a zero, also in int8."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.library import needed
from support.tiny_job import call, net, own, whole_run
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed, Origin
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for
from dcil_dsl.extras.formats import onnx_int8
from dcil_dsl.extras.formats.onnx_file import build_onnx, in_runtime
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Model, Size

onnx = needed("onnx")
runtime = needed("onnxruntime")
needed("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run with both files, and what was printed of the second one."""
    folder = whole_run(tmp_path_factory.mktemp("job"))
    for name in ("onnx", "onnx-int8"):
        assert call("export", folder / "run", "--to", name, *own(folder)) == 0
    return folder


@pytest.fixture
def file(folder):
    return folder / "run" / "sparse.onnx"


@pytest.fixture
def coded(folder):
    return folder / "run" / "sparse.int8.onnx"


@pytest.fixture
def original(folder):
    model = net(folder)
    model.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    return model.eval()


def outputs(file, x):
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_the_file_computes_as_the_network_for_any_batch_size(file, original):
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(outputs(file, x), original(x), rtol=1e-4, atol=1e-5)


def test_verify_counts_the_zeros_of_the_folded_weights(file, original, capsys):
    assert call("verify", file) == 0
    assert "3.weight" in capsys.readouterr().out
    tensors = exporter_for(file).read(file).tensors
    for name in ("0.weight", "3.weight"):
        assert torch.equal(tensors[name] == 0, original.state_dict()[name] == 0), name


def test_the_graph_names_no_file_of_this_machine(file):
    """torch.onnx stores stack traces. The header names the model, as that of safetensors does."""
    model = onnx.load(file)
    del model.metadata_props[:]
    assert b".py" not in model.SerializeToString()


def test_int8_keeps_every_zero_and_verify_counts_the_codes(coded, original, capsys):
    assert call("verify", coded) == 0
    tensors = exporter_for(coded).read(coded).tensors
    codes = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(coded).graph.initializer}
    for name in ("0.weight", "3.weight"):
        own_codes = codes[f"{name}_quantized"]
        assert own_codes.dtype == np.int8
        assert (own_codes[(original.state_dict()[name] == 0).numpy()] == 0).all()
        assert torch.equal(tensors[name] == 0, torch.from_numpy(own_codes == 0)), name
        assert not codes[f"{name}_zero_point"].any()
        assert len(codes[f"{name}_scale"]) == len(own_codes)


def test_int8_is_near_to_float32(coded, file):
    x = torch.randn(8, 3, 32, 32)
    exact, rounded = outputs(file, x), outputs(coded, x)
    assert (exact - rounded).abs().max() < 0.1 * (1 + exact.abs().max())


def saved(file, tmp_path, change):
    model = onnx.load(file)
    change(model)
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def initializer(model, name):
    return next(i for i in model.graph.initializer if i.name == name)


def test_a_code_away_from_the_zero_point_is_a_fault(coded, tmp_path, capsys):
    def change(model):
        entry = initializer(model, "3.weight_quantized")
        entry.raw_data = b"\1" * len(entry.raw_data)

    assert call("verify", saved(coded, tmp_path, change)) == 1
    assert "revived or never pruned" in capsys.readouterr().out


def test_a_moved_zero_point_is_a_fault(coded, tmp_path, capsys):
    """All codes are as they were, and stand for other numbers."""

    def change(model):
        entry = initializer(model, "3.weight_zero_point")
        array = onnx.numpy_helper.to_array(entry) + 1
        entry.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.int8), entry.name))

    assert call("verify", saved(coded, tmp_path, change)) == 1
    assert "revived or never pruned" in capsys.readouterr().out


@pytest.mark.parametrize("op, domain", [("Sigmoid", ""), ("Relu", "mine")])
def test_another_graph_with_the_same_weights_is_a_fault(file, tmp_path, capsys, op, domain):
    """Also one that calls an operation of somebody's own."""

    def change(model):
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = op, domain

    assert call("verify", saved(file, tmp_path, change)) == 1
    assert "the graph is not the one that was exported" in capsys.readouterr().out


def test_another_kept_weight_is_a_fault(file, tmp_path, capsys):
    """The zeros are where they were."""

    def change(model):
        entry = initializer(model, "3.weight")
        array = onnx.numpy_helper.to_array(entry) * np.float32(2)
        entry.CopyFrom(onnx.numpy_helper.from_array(array, entry.name))

    assert call("verify", saved(file, tmp_path, change)) == 1
    assert "the digest differs" in capsys.readouterr().out


def test_a_truncated_file_is_refused(file, tmp_path):
    (tmp_path / "short.onnx").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        exporter_for(tmp_path / "short.onnx").read(tmp_path / "short.onnx")


def test_a_file_of_another_network_is_a_fault_of_the_run(folder, file, tmp_path, capsys):
    """Its zeros are enough, and lie elsewhere."""
    other = whole_run(tmp_path, seed=1)
    assert call("export", other / "run", "--to", "onnx", *own(other)) == 0
    kept = file.read_bytes()
    file.write_bytes((other / "run" / "sparse.onnx").read_bytes())
    assert call("verify", file) == 1
    file.write_bytes(kept)


def test_a_weight_that_no_node_reads_does_not_count(file, tmp_path, capsys):
    def change(model):
        copy = model.graph.initializer.add()
        copy.CopyFrom(initializer(model, "3.weight"))
        copy.name = "other"
        for node in model.graph.node:
            node.input[:] = ["other" if name == "3.weight" else name for name in node.input]

    assert call("verify", saved(file, tmp_path, change)) == 1
    assert "3.weight" in capsys.readouterr().out


def external(model):
    entry = initializer(model, "3.weight")
    entry.ClearField("raw_data")
    entry.data_location = onnx.TensorProto.EXTERNAL
    part = entry.external_data.add()
    part.key, part.value = "location", "../../etc/passwd"


def external_in_a_node(model):
    """A constant that lies in a node, not among the initializers."""
    node = model.graph.node.add()
    node.op_type = "Constant"
    node.output.append("x")
    attribute = node.attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.data_location = onnx.TensorProto.EXTERNAL
    part = attribute.t.external_data.add()
    part.key, part.value = "location", "/etc/passwd"


def larger(model):
    initializer(model, "3.weight").dims[0] = 1 << 40


@pytest.mark.parametrize(
    "change, says",
    [(external, "another file"), (external_in_a_node, "another file"), (larger, "damaged")],
)
def test_a_hostile_file_is_refused(file, tmp_path, change, says):
    model = onnx.load(file)
    change(model)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=says):
        exporter_for(bad).read(bad)


def test_a_scale_that_does_not_fit_is_refused(coded, tmp_path):
    model = onnx.load(coded)
    entry = initializer(model, "3.weight_scale")
    entry.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), entry.name))
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="scales do not fit"):
        exporter_for(tmp_path / "bad.onnx").read(tmp_path / "bad.onnx")


def test_scales_that_would_blow_up_a_weight_are_refused(coded, tmp_path):
    """A column of codes and a row of scales: 3,600 numbers, which would become 3 million."""
    model = onnx.load(coded)
    for name, array in (
        ("3.weight_quantized", np.zeros((1800, 1), np.int8)),
        ("3.weight_scale", np.ones(1800, np.float32)),
        ("3.weight_zero_point", np.zeros(1800, np.int8)),
    ):
        initializer(model, name).CopyFrom(onnx.numpy_helper.from_array(array, name))
    node = next(n for n in model.graph.node if n.input and n.input[0] == "3.weight_quantized")
    next(a for a in node.attribute if a.name == "axis").i = 1
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="scales do not fit"):
        exporter_for(tmp_path / "bad.onnx").read(tmp_path / "bad.onnx")


@pytest.mark.parametrize("left", [0, 1])
def test_a_node_without_its_scales_is_refused(coded, tmp_path, left):
    model = onnx.load(coded)
    node = next(n for n in model.graph.node if n.input and n.input[0] == "3.weight_quantized")
    del node.input[left:]
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    if left:
        with pytest.raises(InputError, match="the scales of `3.weight_quantized` are missing"):
            exporter_for(tmp_path / "bad.onnx").read(tmp_path / "bad.onnx")
    else:  # no node reads the weight
        assert call("verify", tmp_path / "bad.onnx") == 1


def test_codes_that_are_no_whole_numbers_are_refused(coded, tmp_path):
    """0.4 would be read as the code 0."""
    model = onnx.load(coded)
    entry = initializer(model, "3.weight_quantized")
    array = np.full(list(entry.dims), 0.4, np.float32)
    entry.CopyFrom(onnx.numpy_helper.from_array(array, entry.name))
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="no whole numbers"):
        exporter_for(tmp_path / "bad.onnx").read(tmp_path / "bad.onnx")


def test_two_scales_of_one_weight_are_refused(coded, tmp_path):
    """Which of them holds would be a matter of order."""
    model = onnx.load(coded)
    node = next(n for n in model.graph.node if n.input and n.input[0] == "3.weight_quantized")
    again = model.graph.node.add()
    again.CopyFrom(node)
    again.input[1], again.output[0] = "other", "elsewhere"
    scale = onnx.numpy_helper.to_array(initializer(model, "3.weight_scale")) * np.float32(2)
    model.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(scale, "other"))
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="two nodes give"):
        exporter_for(tmp_path / "bad.onnx").read(tmp_path / "bad.onnx")


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08\x09" * 50])
def test_junk_is_refused(tmp_path, data):
    (tmp_path / "junk.onnx").write_bytes(data)
    assert call("verify", tmp_path / "junk.onnx") == 2


def test_int8_needs_a_run_folder(folder, tmp_path, capsys):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "run" / "sparse.safetensors").read_bytes())
    assert call("export", alone, "--to", "onnx-int8", *own(folder)) == 2
    assert "calibrated on the data of the run" in capsys.readouterr().err


def bare(net, **sizes):
    """A network of no run."""
    origin = Origin(
        recipe="none",
        sha256="",
        model=Model(name=None, classes=None, options={}),
        data=None,
        path="sparse",
        step=0,
        promises=(),
        sizes=sizes,
    )
    return Deployed(net, origin)


class Masked(nn.Module):
    """Attention over the tokens whose mask is one; the others get the score -inf."""

    def __init__(self, low):
        super().__init__()
        self.low, self.table, self.query = low, nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids, mask):
        tokens = self.table(ids)
        scores = self.query(tokens) @ tokens.transpose(1, 2)
        scores = scores.masked_fill(mask[:, None] == 0, self.low)
        return scores.softmax(2) @ tokens


@pytest.mark.parametrize("low", [float("-inf"), -3e38, -1e4])
def test_a_mask_of_attention_leaves_the_scores_their_steps_of_int8(low):
    """A range from the lowest number on would have one step for all of them."""
    torch.manual_seed(0)
    net = Masked(low).eval()
    size = Size(shape=(1, 6), dtype="int64")
    dense, places, _, _ = build_onnx(bare(net, ids=size, mask=size))
    lengths = torch.randint(2, 7, (64, 1))
    batch = [torch.randint(50, (64, 6)), (torch.arange(6) < lengths).long()]
    coded = onnx_int8.quantise(dense, [batch])
    expected = net(*batch)
    (found,) = in_runtime(coded)(Inputs.of(tuple(batch)))
    assert (found - expected).abs().max() < 0.15 * expected.abs().max()
    where = onnx_int8.coded_places(coded, places)["query.weight"][0]
    assert where.endswith("_quantized")


def test_an_activation_of_endless_range_is_refused(coded):
    """All of its numbers would have one code."""
    model = onnx.load(coded)
    entry = next(i for i in model.graph.initializer if i.name.endswith("_scale"))
    entry.CopyFrom(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), entry.name))
    with pytest.raises(InputError, match="are not finite"):
        onnx_int8.refuse_endless(model)


def test_a_network_of_which_nothing_is_quantised_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(onnx_int8, "quantise", lambda dense, batches: dense)
    out = folder / "nothing.int8.onnx"
    assert call("export", folder / "run", "--to", "onnx-int8", "--out", out, *own(folder)) == 2
    assert "ONNX Runtime quantises no weight" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_library_names_the_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="`onnx` needs the library") as found:
        EXPORTERS["onnx"].read(file)
    assert found.value.help == "pip install 'dcil-dsl[onnx]'"
