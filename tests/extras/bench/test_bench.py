"""Engines run the same network, take turns, and say what is missing. No time is asserted."""

import json
import os

import pytest
import torch
from support.library import needed
from torch import nn

from dcil_dsl import InputError
from dcil_dsl.extras.bench import engines, measure
from dcil_dsl.extras.bench.engines import ENGINES, Missing, Subject
from dcil_dsl.extras.cpu.export import write
from dcil_dsl.model.inputs import Inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    write(net, (torch.randn(2, 3, 6, 6),), path)
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_computes_the_same(folder, engine):
    subject = Subject(folder, batch=2, threads=1)
    try:
        result = ENGINES[engine][1](subject)()
    except Missing as missing:
        brings = "formats" if engine == "executorch" else "cpu"
        assert os.environ.get("DCIL_EXTRA") != brings, missing
        pytest.skip(str(missing))
    if not isinstance(result, torch.Tensor):
        result = torch.as_tensor(
            next(iter(result.values() if hasattr(result, "values") else result))
        )
    expected = subject.module()(*subject.inputs)
    exact = engine.startswith(("torch", "onnx", "openvino", "executorch")) and "16" not in engine
    bound = 1e-4 if exact and "int8" not in engine else 0.2
    assert (result - expected).abs().max() < bound * (1 + expected.abs().max())


def test_engines_take_turns_and_the_report_is_json(folder, tmp_path):
    report = measure.bench_folder(folder, ["dcil", "torch"], batches=[1, 3], rounds=2)
    assert [(one.engine, one.batch, len(one.seconds)) for one in report.times] == [
        ("dcil", 1, 2),
        ("torch", 1, 2),
        ("dcil", 3, 2),
        ("torch", 3, 2),
    ]
    stored = json.loads(report.write(tmp_path).read_text())
    assert stored["machine"]["torch"] == torch.__version__.split("+")[0]
    assert stored["times"][0]["median"] > 0
    shown = measure.show_report(report)
    assert "batch 3, threads 1" in shown and "torch, eager, dense" in shown


def test_an_engine_that_is_not_installed_is_named(monkeypatch, folder):
    def missing(name):
        raise ImportError

    monkeypatch.setattr(engines.importlib, "import_module", missing)
    for name in ("onnxruntime", "openvino", "executorch"):
        with pytest.raises(Missing, match="is not installed"):
            ENGINES[name][1](Subject(folder, 1, 1))


def rows(folder, engines, batch, threads, rounds, seconds=None):
    contestants = [measure.Contestant(name, name, str(folder)) for name in engines]
    with measure.processes_of(contestants, threads) as started:
        return measure.measure_row(started, batch, threads, rounds, seconds)


def test_an_engine_that_fails_does_not_stop_the_others(folder, tmp_path):
    contestants = [
        measure.Contestant("broken", "torch", str(tmp_path / "nowhere")),
        measure.Contestant("whole", "torch", str(folder)),
    ]
    with measure.processes_of(contestants, 1) as started:
        broken, whole = measure.measure_row(started, 1, 1, 2)
        again, _ = measure.measure_row(started, 2, 1, 1)
    assert "no program.json" in broken.problem and not broken.seconds
    assert "no program.json" in again.problem
    assert len(whole.seconds) == 2 and not whole.problem


def test_an_engine_whose_process_ends_is_named(folder):
    contestants = [measure.Contestant(name, "torch", str(folder)) for name in ("one", "other")]
    with measure.processes_of(contestants, 1) as started:
        started[0].process.kill()
        started[0].process.join()
        one, other = measure.measure_row(started, 1, 1, 1)
    assert one.problem == "its process ended" and other.seconds


def test_a_row_whose_time_is_over_ends_after_the_fewest_rounds(folder):
    (times,) = rows(folder, ["torch"], 1, 1, rounds=50, seconds=0.0)
    assert len(times.seconds) == measure.FEWEST_ROUNDS


def test_engines_of_one_network_share_its_files(folder, tmp_path):
    needed("onnxruntime")
    for _ in range(2):
        subject = Subject(folder, 2, 1, tmp_path)
        ENGINES["onnxruntime-int8"][1](subject)()
    made = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {file.name for file in made} == {"net-2.onnx", "int8-2.onnx"}
    ENGINES["onnxruntime"][1](Subject(folder, 2, 1, tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == made


def test_calibration_takes_the_examples_in_turn(folder, tmp_path):
    file = tmp_path / "examples.safetensors"
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 3, 6, 6)
    program = Subject(folder, 1, 1).program
    assert (
        engines.write_calibration(program, [Inputs.of(images[:2]), Inputs.of(images[2:])], file)
        == 5
    )
    subject = Subject(folder, 2, 1, calibration=file)
    found = [batch[0][:, 0, 0, 0].tolist() for batch in subject.calibrating()]
    assert found[:3] == [[0, 1], [2, 3], [4, 0]] and len(found) == engines.CALIBRATION


@pytest.mark.parametrize("batches", [[torch.zeros(2, 3, 7, 7)], [], [torch.zeros(0, 3, 6, 6)]])
def test_data_that_do_not_fit_the_network_calibrate_nothing(folder, tmp_path, batches):
    program = Subject(folder, 1, 1).program
    with pytest.raises(InputError):
        engines.write_calibration(program, map(Inputs.of, batches), tmp_path / "x")


@pytest.mark.parametrize(
    "settings",
    [
        dict(engines=["magic"]),
        dict(engines=[]),
        dict(engines=["dcil", "dcil"]),
        dict(rounds=0),
        dict(batches=[0]),
        dict(batches=[]),
        dict(threads=[-1]),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(folder, settings):
    with pytest.raises(InputError):
        measure.bench_folder(folder, **settings)


def test_medians_and_spread():
    times = measure.Times("dcil", 1, 1, (1.0, 2.0, 3.0, 4.0, 100.0))
    assert times.median == 3.0
    assert times.spread == pytest.approx((52.0 - 1.5) / 2 / 3)
