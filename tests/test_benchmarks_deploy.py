"""The program that makes the table of CPU engines: which rows it measures, and what a speed is."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import deploy
import deploy_table

from dcil_dsl.extras.bench.measure import Times


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Engines that answer at once; `measured` has the rows in their order."""
    measured = []

    def row(started, batch, threads, rounds, seconds):
        measured.append((batch, threads))
        fast = Times("dcil@0.9", batch, threads, (1.0, 2.0, 4.0))
        return [fast, Times("torch", batch, threads, (2.0, 8.0, 4.0))]

    monkeypatch.setattr(deploy, "measure_row", row)
    monkeypatch.setattr(deploy, "contestants", lambda network, options, folder: [])
    monkeypatch.setattr(deploy, "processes_of", lambda entries, threads: contextlib.nullcontext([]))
    return argparse.Namespace(
        networks=["tiny"],
        batches=[1, 16],
        threads=[1, 2],
        rounds=3,
        minutes=None,
        out=tmp_path / "deploy.json",
        table=False,
        measured=measured,
    )


def test_a_row_in_the_file_is_not_measured_again(options):
    told = deploy.measure(options, deploy.stored(options))
    next(told), next(told)
    told.close()  # stopped after two rows
    assert options.measured == [(1, 1), (1, 2)]
    list(deploy.measure(options, deploy.stored(options)))
    assert options.measured == [(1, 1), (1, 2), (16, 1), (16, 2)]
    assert len(json.loads(options.out.read_text())["rows"]) == 4


def test_rows_for_which_the_time_is_over_are_named(options):
    options.minutes = 0.0
    told = list(deploy.measure(options, []))
    assert len(told) == 4 and all("not measured" in line for line in told)
    assert options.measured == []


def test_rows_of_another_machine_are_not_continued(options):
    list(deploy.measure(options, []))
    data = json.loads(options.out.read_text())
    data["machine"]["cpu"] = "another"
    options.out.write_text(json.dumps(data))
    with pytest.raises(SystemExit):
        deploy.stored(options)


def test_a_speed_is_the_median_of_the_ratios_of_the_rounds(options):
    list(deploy.measure(options, []))
    rows = deploy.stored(options)
    dcil, torch = rows[0]["times"]
    assert torch["sparsity"] is None and dcil["sparsity"] == 0.9
    assert deploy_table.speed(dcil, torch) == 2.0
    line = deploy_table.table(rows).splitlines()[2]
    assert line == "| tiny | 1 | 1 | 4000.00 torch | - | 2.00 | - | - | - | - |"


def test_the_figure_is_drawn(options, tmp_path):
    pytest.importorskip("matplotlib")
    list(deploy.measure(options, []))
    deploy_table.draw(deploy.stored(options), tmp_path / "deploy.svg")
    assert "<svg" in (tmp_path / "deploy.svg").read_text()
