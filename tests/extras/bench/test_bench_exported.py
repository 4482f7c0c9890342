"""`dcil bench` times an exported file as it is, in engines that read it. No time is asserted."""

import pytest
from support.library import needed
from support.tiny_job import call, own, whole_run

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.bench.engines import ENGINES, Missing
from dcil_dsl.extras.bench.exported import ExportedSubject, engines_for
from dcil_dsl.extras.bench.job import bench_run

onnx = needed("onnx")
needed("onnxruntime"), needed("onnxscript"), needed("openvino")

PLACES = {
    "onnx": "sparse.onnx",
    "onnx-int8": "sparse.int8.onnx",
    "openvino": "openvino",
    "openvino-int8": "openvino-int8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = whole_run(tmp_path_factory.mktemp("job"))
    for name in (*PLACES, "torch-export"):
        assert call("export", folder / "run", "--to", name, *own(folder)) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "name, engines",
    [
        ("onnx", ("onnxruntime", "openvino", "openvino-bf16")),
        ("onnx-int8", ("onnxruntime-int8", "openvino-int8", "openvino-int8-sparse")),
        ("openvino", ("openvino", "openvino-bf16")),
        ("openvino-int8", ("openvino-int8", "openvino-int8-sparse")),
    ],
)
def test_a_file_runs_in_the_engines_that_read_it(folder, name, engines):
    """The outputs of all of them are those of the file in float32, within the precision."""
    place = folder / PLACES[name]
    assert engines_for(place) == engines
    exact = ENGINES["onnxruntime"][1](ExportedSubject(folder / "sparse.onnx", 3, 1))()[0]
    for engine in engines:
        result = ENGINES[engine][1](ExportedSubject(place, 3, 1))()
        found = next(iter(result.values() if hasattr(result, "values") else result))
        assert found.shape == exact.shape
        near = 1e-4 if engine in ("onnxruntime", "openvino") else 0.2
        assert abs(found - exact).max() < near * (1 + abs(exact).max()), engine


def test_the_verb_times_a_file(folder, capsys):
    place = folder / "sparse.int8.onnx"
    asked = ("--batch-sizes", "1", "--rounds", "1", "--threads", "1")
    assert call("bench", place, *asked, "--engines", "onnxruntime-int8") == 0
    printed = capsys.readouterr().out
    assert (
        "ONNX Runtime, int8" in printed and "int8 is calibrated on what its export says" in printed
    )


def test_an_engine_that_does_not_read_the_file_says_so(folder):
    for engine in ("onnxruntime", "torch", "dcil"):
        with pytest.raises(Missing, match="does not run"):
            ENGINES[engine][1](ExportedSubject(folder / "sparse.int8.onnx", 1, 1))


def test_another_batch_size_than_that_of_the_file_is_named(folder, tmp_path):
    model = onnx.load(folder / "sparse.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(Missing, match="batches of 2 alone"):
        ExportedSubject(tmp_path / "two.onnx", 3, 1)


def test_a_file_whose_loader_evaluates_expressions_is_refused(folder, capsys):
    assert call("bench", folder / "sparse.pt2") == 2
    assert "--engines torch-export" in capsys.readouterr().err


def test_an_open_size_of_an_input_is_refused(folder, tmp_path):
    model = onnx.load(folder / "sparse.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "side"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(InputError, match="no shape or type of its own"):
        bench_run(tmp_path / "open.onnx", rounds=1)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensor: setattr(tensor.shape.dim[1], "dim_value", 1 << 40), "too large"),
        (lambda tensor: setattr(tensor.shape.dim[1], "dim_value", -3), "too large"),
        (lambda tensor: setattr(tensor, "elem_type", 99), "no shape or type"),
        (lambda tensor: setattr(tensor, "elem_type", onnx.TensorProto.STRING), "no shape or type"),
    ],
)
def test_an_input_that_no_noise_has_is_refused(folder, tmp_path, change, says):
    model = onnx.load(folder / "sparse.onnx")
    change(model.graph.input[0].type.tensor_type)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=says):
        bench_run(tmp_path / "bad.onnx", rounds=1)


def test_a_damaged_file_is_refused_before_it_is_timed(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x09" * 50)
    with pytest.raises(InputError):
        bench_run(tmp_path / "junk.onnx", rounds=1)
