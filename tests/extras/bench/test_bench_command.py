"""`dcil bench` on a run of seconds and on its exported folder. No time is asserted."""

import json

import pytest
from safetensors.torch import load_file
from support.tiny_job import call, own, whole_run

from dcil_dsl.extras.bench import job
from dcil_dsl.extras.bench.measure import BenchReport, describe_cpu

ASKED = ("--batch-sizes", "1,2", "--threads", "1", "--rounds", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.prune, net.py, `run`, and the exported `run/cpu`."""
    folder = whole_run(tmp_path_factory.mktemp("job"))
    assert call("export", folder / "run", "--to", "cpu", *own(folder)) == 0
    return folder


def test_a_run_gets_its_times(folder, tmp_path, capsys):
    file = tmp_path / "times.json"
    asked = (*ASKED, "--engines", "dcil,torch", "--json", file, *own(folder))
    assert call("bench", folder / "run", *asked) == 0
    out = capsys.readouterr().out
    assert "batch 2, threads 1" in out and "torch, eager, dense" in out
    report = json.loads((folder / "run" / "bench.json").read_text())
    assert report == json.loads(file.read_text())
    assert [(one["engine"], one["batch"]) for one in report["times"]] == [
        ("dcil", 1),
        ("torch", 1),
        ("dcil", 2),
        ("torch", 2),
    ]
    assert all(len(one["seconds"]) == 2 for one in report["times"])
    assert {"cpu", "features", "load", "torch"} <= report["machine"].keys()


def test_an_exported_folder_gets_its_times_and_no_file(folder, capsys):
    place = folder / "run" / "cpu"
    before = {file.name for file in place.iterdir()}
    assert call("bench", place, "--batch-sizes", "1", "--rounds", "1", "--engines", "torch") == 0
    out = capsys.readouterr().out
    assert "batch 1, threads 1" in out and "int8 is calibrated on noise" in out
    assert {file.name for file in place.iterdir()} == before


@pytest.fixture
def examples(monkeypatch):
    """The examples that int8 would be calibrated on, in place of a measurement."""
    seen = []

    def measured(folder, engines, batches, threads, rounds, calibration):
        seen.append(None if calibration is None else load_file(calibration))
        return BenchReport((), describe_cpu())

    monkeypatch.setattr(job, "bench_folder", measured)
    return seen


def test_int8_is_calibrated_on_the_data_of_the_run(folder, examples, capsys):
    asked = (*ASKED, "--engines", "onnxruntime-int8", *own(folder))
    assert call("bench", folder / "run", *asked) == 0
    assert "int8 is calibrated on 16 training examples of the run" in capsys.readouterr().out
    report = json.loads((folder / "run" / "bench.json").read_text())
    assert report["calibration"] == "16 training examples of the run"
    ((images,),) = (found.values() for found in examples)
    assert images.shape == (16, 3, 32, 32)


def test_an_engine_without_int8_reads_no_data(folder, examples):
    asked = (*ASKED, "--engines", "dcil,torch", *own(folder))
    assert call("bench", folder / "run", *asked, "--train", "imagefolder", "--data", "/no") == 0
    assert examples == [None]


def test_data_that_are_missing_leave_noise_and_the_reason(folder, examples, tmp_path, capsys):
    asked = (*ASKED, "--engines", "openvino-int8", *own(folder))
    data = ("--train", "imagefolder", "--data", tmp_path / "nowhere")
    assert call("bench", folder / "run", *asked, *data) == 0
    printed = capsys.readouterr()
    assert "int8 is calibrated on noise: " in printed.err
    assert "int8 is calibrated on noise" in printed.out and examples == [None]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("--engines", "magic"), "`magic` is not an engine"),
        (("--engines", ""), "is not an engine"),
        (("--batch-sizes", "0"), "--batch-sizes 0: not whole numbers"),
        (("--batch-sizes", "1,,2"), "not whole numbers"),
        (("--batch-sizes", "9" * 6000), "not whole numbers"),
        (("--threads", "many"), "--threads many: not whole numbers"),
        (("--threads", "1,1"), "twice"),
        (("--json", "/nowhere/x.json"), "there is no folder"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_an_argument_that_means_nothing_is_refused(folder, asked, told, capsys):
    assert call("bench", folder / "run" / "cpu", *asked) == 2
    assert told in capsys.readouterr().err


def test_a_place_that_is_no_network_is_refused(folder, tmp_path, capsys):
    assert call("bench", tmp_path) == 2
    assert "neither a run folder nor one that" in capsys.readouterr().err
    assert call("bench", tmp_path / "nowhere") == 2
    assert call("bench", folder / "run" / "cpu", "--path", "dense") == 2
    assert "are of runs" in capsys.readouterr().err
