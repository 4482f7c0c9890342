"""The coverage table's program: what it chooses, what its JSON names, and that it goes on."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
coverage = importlib.import_module("coverage")
compared = importlib.import_module("coverage_one")
cases = importlib.import_module("coverage_models")
NAMES = ["b/one", "a/two", "a/one", "b/three", "a/three", "b/two", "c/one"]


def test_a_sample_has_as_many_models_of_each_library_in_the_order_of_the_list():
    chosen = coverage._sample(NAMES, 2)
    assert [name[0] for name in chosen].count("a") == 2
    assert [name[0] for name in chosen].count("b") == 2
    assert "c/one" in chosen
    assert chosen == [name for name in NAMES if name in chosen]


def test_a_smaller_sample_is_part_of_a_larger_one():
    assert set(coverage._sample(NAMES, 1)) <= set(coverage._sample(NAMES, 2))
    assert coverage._sample(NAMES, None) == NAMES


def _run(place):
    """In a process of its own: some libraries change torch as they are imported."""
    program = [sys.executable, coverage.__file__, "--only", "*/squeezenet1_1"]
    return subprocess.run([*program, "--json", str(place)], capture_output=True, check=False)


def test_the_json_names_commit_and_versions_and_what_it_has_is_not_run_again(tmp_path):
    place = tmp_path / "coverage.json"
    done = _run(place)
    assert done.returncode == 0, done
    written = json.loads(place.read_text())
    (entry,) = written["models"].values()
    assert entry["status"] == "exact" and entry["kept_layers"] > 0
    assert "commit" in entry and written["versions"]["torch"]
    assert _run(place).returncode == 0
    assert json.loads(place.read_text())["models"] == written["models"]


def test_the_table_names_the_commits_where_there_are_several():
    entry = {"status": "refused", "reason": "why"}
    report = {"models": {"a/one": entry | {"commit": "x"}, "a/two": entry | {"commit": "y"}}}
    assert "more than one commit: 1 at x, 1 at y" in coverage.table(report)
    report["models"].pop("a/two")
    assert "commit" not in coverage.table(report)


def test_both_sides_enter_the_evaluation_step_with_the_same_weights_and_statistics(monkeypatch):
    """Else an activation that is zero but for rounding is on one side of it for each of them."""
    apart = []

    def look(dual, plan, reference, *rest):
        found = compare(dual, plan, reference, *rest)
        ours = dict(dual.named_parameters()) | dict(dual.named_buffers())
        theirs = reference.parameters() | reference.buffers()
        apart.extend(name for name, value in theirs.items() if not torch.equal(value, ours[name]))
        return found

    compare = compared.compare
    monkeypatch.setattr(compared, "compare", look)
    case = cases.Case("timm:test_byobnet", {}, (64,))
    assert compared.measure(case, float64_below=1e9)["status"] == "exact"
    assert apart == []


def test_a_counter_that_differs_is_not_exact(monkeypatch):
    def miscount(copies):
        found = buffers(copies)
        return {name: b + 1 if "tracked" in name else b for name, b in found.items()}

    buffers = compared.TwoCopies.buffers
    monkeypatch.setattr(compared.TwoCopies, "buffers", miscount)
    record = compared.measure(cases.Case("timm:test_byobnet", {}, (64,)), float64_below=1e9)
    assert record["status"] == "inexact"
    assert record["train"]["buffers"] == float("inf")
