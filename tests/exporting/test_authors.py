"""The authors' curves stand beside a run of their own experiment, and beside no other."""

import json
import os
from pathlib import Path

import pytest

from dcil_dsl.exporting.authors import compare, last_compared, logged, show_authors
from dcil_dsl.lang import load
from dcil_dsl.plan.wording import PLAIN
from dcil_dsl.prepare import prepare
from dcil_dsl.revisit import beside_authors

RECIPES = Path(__file__).parents[2] / "recipes"


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
        {"recipe": {"name": "mine"}}, {"recipe": {"reference": None}}, {"data": {"name": "digits"}},
        {"model": {"name": "dcil:resnet20"}}, {"train": {"num_epochs": 299}},
    ],
)  # fmt: skip
def test_another_experiment_has_no_curve(plan, change):
    ((part, fields),) = change.items()
    other = plan.model_copy(update={part: getattr(plan, part).model_copy(update=fields)})
    assert logged(other) == {}
    assert compare(other, lines_of({1: 0.5})) == []
    assert show_authors(other, lines_of({1: 0.5}), PLAIN) == []
    assert last_compared(other, lines_of({1: 0.5})) is None


def test_another_target_has_no_curve(plan):
    assert logged(plan_of("resnet32_cifar10_dcil90", {"target": "80%"})) == {}


def test_a_run_is_compared_at_its_own_epochs(plan):
    found = compare(plan, lines_of({1: 0.4, 2: 0.6}))
    assert [(c.epoch, c.top1, c.mean, c.deviation) for c in found] == [
        (1, 0.4, 0.4906, 0.0291), (2, 0.6, 0.6286, 0.0139),
    ]  # fmt: skip
    assert last_compared(plan, lines_of({1: 0.4, 2: 0.6})) == {
        "epoch": 2, "top1": 0.6, "mean": 0.6286, "deviation": 0.0139, "num_runs": 3,
        "source": "summary/csv of github.com/Jangho-Kim/DCIL-pytorch",
    }  # fmt: skip


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


def test_a_run_folder_is_read_for_its_deployed_path_alone(plan, tmp_path):
    (tmp_path / "plan.json").write_text(plan.to_json())
    lines = lines_of({1: 0.5, 2: 0.61})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = beside_authors(tmp_path, "sparse", PLAIN)
    assert told[-2].split() == ["2", "61.00%", "62.86%", "+-", "1.39", "-1.86"]
    assert beside_authors(tmp_path, "dense", PLAIN) == []


@pytest.mark.parametrize(
    "text", ["{\n{}\n", "[1]\n{}\n", '{"epoch": 1}\n', '{"epoch": 1, "top1": 3}\n']
)
def test_damaged_lines_of_metrics_leave_the_authors_numbers_out(plan, tmp_path, text):
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "metrics.jsonl").write_text(text)
    told = beside_authors(tmp_path, "sparse", PLAIN)
    assert all("left out" in line and "metrics.jsonl:1" in line for line in told)


def test_a_pipe_in_the_place_of_metrics_is_not_waited_for(plan, tmp_path):
    (tmp_path / "plan.json").write_text(plan.to_json())
    os.mkfifo(tmp_path / "metrics.jsonl")
    (told,) = beside_authors(tmp_path, "sparse", PLAIN)
    assert "it is no file" in told
