"""benchmarks/authors.py compares runs of the authors' own experiment, and no others."""

import json
import os
import sys
from pathlib import Path

import pytest

from dcil_dsl.jobs.prepare import prepare
from dcil_dsl.lang import load
from dcil_dsl.plan.text import PLAIN

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from authors import compare, logged, main, show_authors  # noqa: E402

RECIPES = ROOT / "recipes"


def plan_of(name, overrides=None, model="dcil:resnet32", data="cifar10"):
    recipe = load(RECIPES / f"{name}.prune", overrides)
    told = []
    return prepare(recipe, model, warn=told.append, note=told.append, data=data).plan


@pytest.fixture(scope="module")
def plan():
    return plan_of("resnet32_cifar10_dcil90")


def lines_of(top1_by_epoch):
    return [
        {"epoch": epoch, "top1": {"sparse": top1, "dense": 0.99}}
        for epoch, top1 in top1_by_epoch.items()
    ]


def test_the_authors_last_epochs_are_those_of_their_logs(plan):
    assert logged(plan)[300] == (0.9274, 0.0025)
    assert logged(plan_of("resnet32_cifar10_dcil95"))[300][0] == 0.9211
    assert sorted(logged(plan)) == list(range(1, 301))


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"name": "mine"}},
        {"recipe": {"reference": None}},
        {"data": {"name": "digits"}},
        {"model": {"name": "dcil:resnet20"}},
        {"train": {"num_epochs": 299}},
    ],
)
def test_another_experiment_has_no_curve(plan, change):
    ((part, fields),) = change.items()
    other = plan.model_copy(update={part: getattr(plan, part).model_copy(update=fields)})
    assert logged(other) == {}
    assert compare(other, lines_of({1: 0.5})) == []
    assert show_authors(other, lines_of({1: 0.5}), PLAIN) == []


def test_another_target_has_no_curve(plan):
    assert logged(plan_of("resnet32_cifar10_dcil90", {"target": "80%"})) == {}


def test_a_run_is_compared_at_its_own_epochs(plan):
    found = compare(plan, lines_of({1: 0.4, 2: 0.6}))
    assert [(c.epoch, c.top1, c.mean, c.deviation) for c in found] == [
        (1, 0.4, 0.4906, 0.0291),
        (2, 0.6, 0.6286, 0.0139),
    ]


def test_both_curves_are_drawn_with_the_numbers_below(plan):
    theirs = logged(plan)
    drawn = show_authors(plan, lines_of({e: theirs[e][0] - 0.03 for e in range(1, 152)}), PLAIN)
    rows = [line.partition("|")[2] for line in drawn if "|" in line]
    assert len(rows) == 10
    assert any("@" in row or "*" in row for row in rows)
    assert all("*" not in row[38:] and "@" not in row[38:] for row in rows)  # half of the run
    assert any("." in row[60:] for row in rows)
    numbers = [line.split() for line in drawn[drawn.index("") + 2 : -1]]
    assert [row[0] for row in numbers] == ["1", "10", "70", "150", "151"]
    assert {row[-1] for row in numbers} == {"-3.00"}
    assert all(len(line) <= PLAIN.width for line in drawn)


def test_a_curve_that_is_the_authors_own_is_drawn_over_theirs(plan):
    drawn = show_authors(plan, lines_of({e: m for e, (m, _) in logged(plan).items()}), PLAIN)
    rows = "".join(line.partition("|")[2] for line in drawn if "|" in line)
    assert set(rows) == {" ", "@"}


def write_run(folder, plan, metrics):
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "metrics.jsonl").write_text(metrics)
    return [str(folder)]


def test_a_run_folder_is_read_and_its_numbers_are_printed(plan, tmp_path, capsys):
    lines = lines_of({1: 0.5, 2: 0.61})
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    assert main(write_run(tmp_path, plan, metrics)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == ["2", "61.00%", "62.86%", "+-", "1.39", "-1.86"]


def test_a_run_of_another_experiment_is_refused(plan, tmp_path, capsys):
    other = plan.model_copy(update={"data": plan.data.model_copy(update={"name": "digits"})})
    assert main(write_run(tmp_path, other, "")) == 1
    assert "is not a run of the authors' experiment" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"epoch": 1}\n', '{"epoch": 1, "top1": 3}\n'])
def test_an_epoch_without_accuracies_has_no_numbers(plan, tmp_path, capsys, text):
    assert main(write_run(tmp_path, plan, text)) == 0
    assert capsys.readouterr().out == "the run has no epoch yet\n"


@pytest.mark.parametrize("text", ["{\n{}\n", "[1]\n{}\n"])
def test_damaged_lines_of_metrics_are_an_error_with_their_place(plan, tmp_path, capsys, text):
    assert main(write_run(tmp_path, plan, text)) == 2
    assert "metrics.jsonl:1" in capsys.readouterr().err


def test_a_pipe_in_the_place_of_metrics_is_not_waited_for(plan, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(plan.to_json())
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert main([str(tmp_path)]) == 2
    assert "it is not a file" in capsys.readouterr().err
