"""`--track`: what a tracker has of a run, and that it never ends one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.tiny_job import NET, RECIPE, call, job

from dcil_dsl.extras.tracking import session
from dcil_dsl.extras.tracking.trackers import TRACKERS

EXTRA = os.environ.get("DCIL_EXTRA") == "tracking"  # every library has to be there


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def real(name):
    if EXTRA:
        return __import__(name)
    return pytest.importorskip(name)


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Memory:
    """A tracker that keeps what it is given; fails at the call named `fails`."""

    made: list[Memory] = []
    fails = ""

    def __init__(self, name, settings, key):
        self.name, self.settings, self.key = name, settings, key or "key-1"
        self.was, self.lines, self.files, self.how = key, {}, {}, None
        self.made.append(self)
        self.fail("init")

    def fail(self, call):
        if call == self.fails:
            raise ConnectionError("the server\nis gone")

    def log(self, numbers, step):
        self.fail("log")
        self.lines[step] = numbers

    def end(self, files, how):
        self.fail("end")
        self.files, self.how = {file.name: file.read_text() for file in files}, how


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(Memory, "made", [])
    monkeypatch.setattr(session, "TRACKERS", {"mlflow": Memory})
    monkeypatch.setattr(session, "is_installed", lambda name: True)
    return Memory


def test_a_tracker_has_the_settings_the_epochs_and_the_files(folder, memory):
    assert call(*job(folder), "--out", "run", "--track", "mlflow") == 0
    (sent,) = memory.made
    assert sent.name == "run" and sent.was is None and sent.how == "finished"
    assert sent.settings["train.optimizer.lr"] == 0.05
    assert sent.settings["rule1.target.sparsity"] == 0.9
    lines = lines_of(folder / "run")
    assert list(sent.lines) == [line["step"] for line in lines]
    for line in lines:
        numbers = sent.lines[line["step"]]
        assert numbers["top1/sparse"] == line["top1"]["sparse"]
        assert numbers["density/0.weight"] == line["density"]["0.weight"]
        assert all(isinstance(number, int | float) for number in numbers.values())
    assert set(sent.files) == {
        *("recipe.prune", "resolved.prune", "plan.json", "command.json", "metrics.jsonl"),
        *("report.json", "report.html"),
    }
    assert sent.files["resolved.prune"] == (folder / "run" / "resolved.prune").read_text()
    assert "Verified:" in sent.files["report.html"]


def test_a_resumed_run_is_the_same_run_of_the_tracker(folder, memory):
    track = [*job(folder), "--out", "run", "--track", "mlflow"]
    assert call(*track, "--max-steps", "2") == 0
    assert call(*track, "--resume") == 0
    first, second = memory.made
    assert first.was is None and second.was == first.key
    assert second.how == "finished" and {**first.lines, **second.lines}.keys() >= {
        line["step"] for line in lines_of(folder / "run")
    }


@pytest.mark.parametrize("place", ["init", "log", "end"])
def test_a_tracker_that_fails_is_reported_once_and_the_run_ends_well(
    folder, memory, monkeypatch, capsys, place
):
    monkeypatch.setattr(memory, "fails", place)
    assert call(*job(folder), "--out", "run", "--track", "mlflow") == 0
    said = capsys.readouterr().err
    fact = "--track mlflow failed, and the run continues without it: the server is gone"
    assert said.count("--track") == 1 and fact in said
    assert (folder / "run" / "report.json").is_file()


def test_a_run_that_fails_is_called_failed(folder, memory):
    made = SimpleNamespace(path=folder, report=folder / "report.json")
    sent = []
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patched:
        patched.setattr(session.Sent, "begin", lambda self, *given: None)
        patched.setattr(session.Sent, "end", lambda self, run, how: sent.append(how))
        with session.tracked("mlflow", made, None, None, print):
            raise ZeroDivisionError
    assert sent == ["failed"]


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_library_is_named_before_anything_is_made(folder, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert call(*job(folder), "--out", "run", "--track", name) == 2
    said = capsys.readouterr().err
    assert f"--track {name}: {name} is not installed" in said
    assert f"pip install 'dcil-dsl[{name}]'" in said
    assert not (folder / "run").exists()


def test_another_tracker_is_refused_with_those_there_are(folder, capsys):
    assert call(*job(folder), "--track", "aim") == 2
    assert "--track aim: must be mlflow, wandb or trackio" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:./mlruns"])
def test_mlflow_stores_the_run_in_local_files(folder, monkeypatch, uri, capsys):
    real("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for file: alone
    assert call(*job(folder), "--out", "run", "--track", "mlflow", "--max-steps", "2") == 0
    assert call(*job(folder), "--out", "run", "--track", "mlflow", "--resume") == 0
    assert "--track mlflow failed" not in capsys.readouterr().err
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    place = client.get_experiment_by_name("dcil").experiment_id
    (run,) = client.search_runs([place])  # the resumed run is the same one
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["train.optimizer.lr"] == "0.05"
    wanted = {line["step"]: line["top1"]["sparse"] for line in lines_of(folder / "run")}
    history = client.get_metric_history(run.info.run_id, "top1/sparse")
    found = {one.step: one.value for one in history}
    assert {step: found[step] for step in wanted} == pytest.approx(wanted)
    assert "losses/kl:sparse from dense" in run.data.metrics
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"resolved.prune", "report.json", "report.html"} <= files


def test_wandb_stores_the_run_offline(folder, monkeypatch, capsys):
    real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert call(*job(folder), "--out", "run", "--track", "wandb") == 0
    assert "--track wandb failed" not in capsys.readouterr().err
    key = json.loads((folder / "run" / "tracking.json").read_text())["wandb"]
    (stored,) = (folder / "wandb").glob(f"offline-run-*-{key}/run-{key}.wandb")
    content = stored.read_bytes()
    for text in (b"top1/sparse", b"train.optimizer.lr", b"density/0.weight", b"report.html"):
        assert text in content, text


def test_trackio_stores_the_run(folder, monkeypatch, capsys):
    real("trackio")
    code = "import sys; from dcil_dsl.cli.commands import main; sys.argv[0] = 'dcil'; main()"
    words = [*job(folder), "--out", "run", "--track", "trackio"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"TRACKIO_DIR": str(folder / "trackio")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--track trackio failed" not in done.stderr, done.stderr
    import sqlite3

    (stored,) = (folder / "trackio").glob("dcil*.db")
    rows = sqlite3.connect(stored).execute("select step, metrics from metrics order by step")
    found = {step: json.loads(text)["top1/sparse"] for step, text in rows}
    wanted = {line["step"]: line["top1"]["sparse"] for line in lines_of(folder / "run")}
    assert found == pytest.approx(wanted)
    files = {file.name for file in (folder / "trackio").rglob("*")}
    assert "artifacts" in " ".join(files), files
