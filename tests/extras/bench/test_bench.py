"""Engines run the same network, take turns, and say what is missing. No time is asserted."""

import json

import pytest
import torch
from torch import nn

from dcil_dsl import InputError
from dcil_dsl.extras.bench import engines, measure
from dcil_dsl.extras.bench.engines import ENGINES, Missing, Subject
from dcil_dsl.extras.cpu.export import write


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
        pytest.skip(str(missing))
    if not isinstance(result, torch.Tensor):
        result = torch.as_tensor(
            next(iter(result.values() if hasattr(result, "values") else result))
        )
    expected = subject.module()(*subject.inputs)
    exact = engine.startswith(("torch", "onnx", "openvino")) and "16" not in engine
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
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(Missing, match="is not installed"):
            ENGINES[name][1](Subject(folder, 1, 1))


def test_an_engine_that_fails_does_not_stop_the_others(folder):
    times = measure._together(str(folder), ["torch", "dcil"], 1, 1, 1)
    assert all(one.seconds for one in times)
    broken = measure._together(str(folder.parent / "nowhere"), ["torch"], 1, 1, 1)
    assert broken[0].problem and not broken[0].seconds


@pytest.mark.parametrize(
    "settings",
    [dict(engines=["magic"]), dict(rounds=0), dict(batches=[0]), dict(threads=[-1])],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(folder, settings):
    with pytest.raises(InputError):
        measure.bench_folder(folder, **settings)


def test_medians_and_spread():
    times = measure.Times("dcil", 1, 1, (1.0, 2.0, 3.0, 4.0, 100.0))
    assert times.median == 3.0
    assert times.spread == pytest.approx((52.0 - 1.5) / 2 / 3)
