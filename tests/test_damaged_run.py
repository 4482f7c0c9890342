"""A run folder whose texts were changed by hand is reported as such: status 2 and no traceback."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import call, job, own, short_run

CONV = "0.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return short_run(tmp_path_factory.mktemp("damaged"))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


def changed(values: object, place: str, new: object) -> str:
    """JSON text with another value at "groups.0.refresh"."""
    *outer, last = [int(name) if name.isdecimal() else name for name in place.split(".")]
    inner = values
    for name in outer:
        inner = inner[name]
    inner[last] = new
    return json.dumps(values)


PLANS = [
    ("groups.0.refresh", 0, "greater than or equal to 1|greater than 0"),
    ("groups.0.num_weights", [432], "num_weights does not have one entry for each of 2"),
    ("groups.0.floors", [1, 1, 1], "floors does not have one entry for each of 2"),
    ("groups.0.spans", [1], "its members are not all of its weights"),
    ("groups.0.granularity", {"word": "filter"}, "no cuts say what a filter is"),
    ("groups.0.parameters.0", "9.weight", "a group prunes a weight that is not in a layer"),
    ("layers.0.group", 1, "a layer belongs to a missing group"),
    ("deploy", "x", "paths do not have one name each, or others are named"),
    ("paths.1.name", "sparse", "paths do not have one name each, or others are named"),
    ("phases.0.paths", ["sparse", "dense", "dense"], "and no path twice"),
    ("phases.0.shares", [], "a phase has not one row of shares"),
    ("phases", [], "no phase says which path runs"),
    ("privates", [{"module": "1"}, {"module": "1"}], "a module is private twice"),
    ("paths.0.view", "outside", "has no word `outside` that is a view"),
    ("groups.0.score", {"kind": "outside"}, "a word of the plan is not a score"),
    ("paths.0.batch", -1.0, "paths.0.batch: "),
    ("groups.0.target", float("nan"), "groups.0.target: "),
    ("groups.0.target", 1.5, "groups.0.target: "),
    ("groups.0.schedule.settings.initial", float("-inf"), "initial: "),
    ("train.optimizer.settings.lr", float("nan"), "lr: "),
    ("steps_per_epoch", 0, "steps_per_epoch: "),
    ("num_steps", -1, "num_steps: "),
    ("format", 3, "format: "),
]


@pytest.mark.parametrize("place, new, fault", PLANS, ids=lambda value: str(value)[:24])
def test_a_plan_that_contradicts_itself_is_refused_with_the_place(
    folder, place, new, fault, capsys
):
    file = folder / "run" / "plan.json"
    file.write_text(changed(json.loads(file.read_text()), place, new))
    for verb in (["verify", folder / "run"], ["eval", folder / "run", *own(folder)]):
        assert call(*verb) == 2
        err = capsys.readouterr().err
        assert "is not a plan that this version reads" in err
        assert any(text in err for text in fault.split("|")), err


@pytest.mark.parametrize(
    "place, new, fault",
    [
        ("sizes.input.dtype", "int99", "the plan's input `input` is impossible: int99"),
        ("sizes.input.shape", [10**30], "the plan's input `input` is impossible"),
        ("privates.0.module", "x", "the plan's private `x` is not in this model"),
        ("privates.0.module", "", "the plan's private `` is not in this model"),
    ],
)
def test_a_plan_of_what_cannot_be_is_refused(folder, place, new, fault, capsys):
    file = folder / "run" / "plan.json"
    file.write_text(changed(json.loads(file.read_text()), place, new))
    for verb in ("eval", "sensitivity"):
        assert call(verb, folder / "run", *own(folder)) == 2
        assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    "place, new, fault",
    [
        ("promises.0.parameters", [CONV], "num_weights does not have one entry for each of 1"),
        ("promises.0.num_weights", [], "num_weights does not have one entry for each of 2"),
        ("promises.0.asked", float("nan"), "promises.0.asked: "),
        ("promises.0.keeps", [-1], "promises.0.keeps.0: "),
        ("step", -1, "step: "),
        ("format", 3, "format: "),
        ("promises.0.keeps", [], "one budget keeps one number"),
        ("promises.0.costs", [1, 1, 1], "costs does not have one entry for each of 2"),
        ("promises.0.cuts", [{"shape": [2], "units": [1]}] * 2, "not dimensions of its shape"),
        ("promises.0.cuts", [{"shape": [2], "units": [0]}] * 2, "does not have 432 weights"),
    ],
)
def test_a_header_whose_promise_contradicts_itself_is_refused(folder, place, new, fault, capsys):
    file = folder / "run" / "sparse.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    text = changed(json.loads(header["dcil"]), place, new)
    save_file(load_file(file), folder / "alone.safetensors", header | {"dcil": text})
    assert call("verify", folder / "alone.safetensors") == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, text, fault",
    [
        ("data.json", "{", "data.json cannot be read"),
        ("data.json", "[1]", "data.json cannot be read"),
        ("data.json", "[" * 100_000, "data.json cannot be read"),
        ("command.json", "[" * 100_000, "command.json cannot be read"),
        (
            "command.json",
            '{"weights": 5}',
            "cannot be read: `weights` is not a string",
        ),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl:1: not the line of an epoch"),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl:1: not the line of an epoch"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": "x"}\n', "metrics.jsonl:2: not the line"),
    ],
)
def test_a_damaged_text_is_named_when_a_run_is_resumed(made, folder, name, text, fault, capsys):
    (folder / "run" / name).write_text(text)
    assert call(*job(made), "--out", folder / "run", "--resume", "--quiet") == 2
    assert fault in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_of_checkpoints_is_named(made, folder, capsys):
    shutil.rmtree(folder / "run" / "checkpoint")
    (folder / "run" / "checkpoint").touch()
    assert call(*job(made), "--out", folder / "run", "--resume", "--quiet") == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_an_accuracy_that_metrics_do_not_hold_is_no_matter_for_eval(folder, capsys):
    (folder / "run" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert call("eval", folder / "run", *own(folder)) == 0
    assert "sparse path after 2 steps" in capsys.readouterr().out


def test_eval_does_not_judge_a_run_that_was_cut_short(folder, capsys):
    assert call("eval", folder / "run", *own(folder)) == 0
    assert "expect sparsity >= 89%: measured 0.0000%, not judged" in capsys.readouterr().out


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


@pytest.mark.parametrize("make", [pipe, directory])
@pytest.mark.parametrize(
    "name",
    [
        "command.json",
        "plan.json",
        "model.txt",
        "data.json",
        "metrics.jsonl",
        "resolved.prune",
        "checkpoint/last.safetensors",
        "sparse.safetensors",
    ],
)
def test_what_is_no_file_is_not_waited_for(made, folder, name, make, capsys):
    make(folder / "run" / name)
    verbs = [
        ["eval", folder / "run", *own(folder)],
        ["verify", folder / "run"],
        ["export", folder / "run", "--to", "pth", *own(folder)],
        [*job(made), "--out", folder / "run", "--resume", "--quiet"],
    ]
    codes = [call(*verb) for verb in verbs]
    assert "Traceback" not in capsys.readouterr().err
    assert {*codes} <= {0, 1, 2}
    if "last" in name or name == "plan.json":
        assert {*codes} == {2}
    if name in ("data.json", "metrics.jsonl"):
        assert codes == [0, 0, 0, 2]
    if name == "model.txt":  # what eval and export compare the model with
        assert codes == [2, 0, 2, 2]
        assert call(*verbs[0], "--anyway") == 0
