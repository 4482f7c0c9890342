"""Sets of runs: the list, the comparison, the sweep."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import pytest
from support.tiny_job import NET, RECIPE, call

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.report import sweep as s
from dcil_dsl.extras.report.listing import list_runs, show_list
from dcil_dsl.plan.text import Page

FAKE = """
import json, sys, pathlib
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
(out.parent / "calls.txt").open("a").write(" ".join(words) + chr(10))
if "target=bad" in words:
    sys.exit("error: no such target")
"""


def test_runs_are_listed_the_best_first(two_runs, capsys):
    assert call("runs", two_runs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "recipe", "model"]
    found = []
    for name in ("run", "other"):
        report = json.loads((two_runs / name / "report.json").read_text())
        found.append((report["result"]["accuracies"]["sparse"]["top1"], name))
    text = "\n".join(lines)
    order = [name for _, name in sorted(found, key=lambda one: (-one[0], one[1]))]
    starts = [line.rpartition("/")[2].split()[0] for line in lines[1:] if str(two_runs) in line]
    assert starts == order
    assert text.count("finished") == 2


@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_table_of_runs_fits_the_page(two_runs, width):
    records, _ = list_runs(two_runs)
    lines = show_list(records, Page(width)).splitlines()
    assert max(map(len, lines)) <= width
    assert {"run", "sparsity", "result", "state"} <= set(lines[0].split())
    assert ("recipe" in lines[0]) == (width > 60)


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_listed(two_runs, tmp_path, capsys):
    shutil.copytree(two_runs / "run", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "plan.json").write_text("{}")
    assert call("runs", tmp_path) == 0
    said = capsys.readouterr()
    assert "left out:" in said.err and "bad" in said.err
    assert "good" in said.out and "bad" not in said.out


def test_listing_runs_needs_no_torch(two_runs):
    import subprocess

    code = (
        "import sys, dcil_dsl.cli.commands\n"
        "sys.argv = ['dcil', 'runs', sys.argv[1]]\n"
        "try:\n    dcil_dsl.cli.commands.main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(two_runs)], check=True)


def test_a_comparison_names_what_differs_in_recipe_plan_and_layers(two_runs, capsys):
    assert call("compare", two_runs / "run", two_runs / "other") == 0
    text = capsys.readouterr().out
    assert "~ prune Conv2d: global(90%) -> global(50%)" in text
    assert "target.sparsity: 0.9 in run, 0.5 in other" in text
    assert "train.seed: 0 in run, 3 in other" in text
    assert "layers that differ most" in text and "3.weight" in text
    assert max(map(len, text.splitlines())) <= 100


def test_one_run_alone_is_not_compared(two_runs, capsys):
    assert call("compare", two_runs / "run") == 2
    assert "two or more run folders" in capsys.readouterr().err


def test_values_are_divided_at_commas_outside_of_brackets():
    lists = s.read_lists(["target=80%,90%", "train.optimizer=sgd(lr=0.1, momentum=0.9),sgd(lr=1)"])
    assert lists["target"] == ("80%", "90%")
    assert lists["train.optimizer"] == ("sgd(lr=0.1, momentum=0.9)", "sgd(lr=1)")
    runs = s.runs_of(lists, range(3))
    assert len(runs) == 12 and len({run.name for run in runs}) == 12


@pytest.mark.parametrize("entry", ["target", "=80%", "target=80%,,90%", "target=80%,80%"])
def test_a_list_that_is_none_is_refused(entry):
    with pytest.raises(InputError, match="--vary"):
        s.read_lists([entry])


def test_a_failed_run_does_not_end_the_others_and_finished_ones_are_kept(
    two_runs, tmp_path, monkeypatch
):
    (tmp_path / "fake.py").write_text(FAKE)
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path}/fake.py "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(s.sys, "executable", str(launcher))
    runs = s.runs_of({"target": ("90%", "bad", "95%")}, [0])
    shutil.copytree(two_runs / "run", tmp_path / "sweep" / runs[0].name)
    (tmp_path / "sweep" / runs[2].name).mkdir()
    (tmp_path / "sweep" / runs[2].name / "plan.json").write_text("{}")  # interrupted
    outcomes = s.run_all(runs, tmp_path / "sweep", ["r.prune"], 2, lambda outcome: None)
    assert [(one.status, one.reused) for one in outcomes] == [(0, True), (1, False), (0, False)]
    assert outcomes[1].reason == "error: no such target"
    calls = (tmp_path / "sweep" / "calls.txt").read_text().splitlines()
    assert len(calls) == 2
    (resumed,) = [line for line in calls if "target=95%" in line]
    assert resumed.endswith("--resume") and "--seed 0" in resumed


def test_after_an_interrupted_run_no_other_one_starts(tmp_path, monkeypatch):
    """Ctrl-C reaches the run that is going on; the sweep resumes with the same command."""
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\nexit 130\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(s.sys, "executable", str(launcher))
    (tmp_path / "sweep").mkdir()
    runs = s.runs_of({}, range(3))
    outcomes = s.run_all(runs, tmp_path / "sweep", ["r.prune"], 1, lambda outcome: None)
    assert [one.status for one in outcomes] == [130, 130, 130]
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == 1


def test_a_finished_run_with_a_damaged_report_fails_alone(two_runs, tmp_path):
    runs = s.runs_of({}, range(2))
    for run in runs:
        shutil.copytree(two_runs / "run", tmp_path / "sweep" / run.name)
    (tmp_path / "sweep" / runs[0].name / "report.json").write_text("{")
    outcomes = s.run_all(runs, tmp_path / "sweep", ["r.prune"], 1, lambda outcome: None)
    assert [one.status for one in outcomes] == [2, 0] and "report.json" in outcomes[0].reason
    records = s.read_records(outcomes, tmp_path / "sweep")
    assert records[0] is None and records[1] is not None
    assert s.results_csv(outcomes, records).count("\n") == 3


def test_a_recipe_that_comes_with_dcil_can_be_swept():
    assert "language 1" in s.request_of("dcil:quickstart", "m", "digits", {})["recipe"]
    with pytest.raises(InputError, match="cannot read the recipe gone.prune"):
        s.request_of("gone.prune", "m", "digits", {})


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    s.open_sweep(tmp_path / "a", {"model": "x"})
    s.open_sweep(tmp_path / "a", {"model": "x"})
    with pytest.raises(InputError, match="another recipe, model, data or options"):
        s.open_sweep(tmp_path / "a", {"model": "y"})


def test_a_sweep_trains_each_value_and_writes_table_csv_and_page(tmp_path, capsys):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    command = ["sweep", tmp_path / "tiny.prune", "--model", f"{tmp_path}/net.py:Net"]
    command += ["--train", "synthetic", "--device", "cpu", "--max-steps", "2"]
    command += ["--vary", "target=80%,180%", "--out", tmp_path / "sweep"]
    assert call(*command) == 1  # 180% is not a sparsity
    said = capsys.readouterr()
    assert "FAILED with status 1" in said.err and "0 of 1" in said.out and "1 of 1" in said.out
    with open(tmp_path / "sweep" / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["target"], row["status"]) for row in rows] == [("80%", "0"), ("180%", "1")]
    assert float(rows[0]["step"]) == 2 and rows[1]["step"] == ""
    assert (tmp_path / "sweep" / "report.html").exists()
    assert call(*command) == 1
    assert "target=80%_seed=0: has finished before" in capsys.readouterr().err
