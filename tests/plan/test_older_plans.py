"""Runs and files of earlier versions: of format 1, and of format 2 without later fields."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_job import call, job, own, whole_run

from dcil_dsl.exporting.artefact import Origin
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import plan_differences, stored_fingerprint

# Of tiny_job's run after 7 steps, by the last version that wrote format 1.
FORMAT_1 = Path(__file__).parent.parent / "golden" / "format_1"
PLAN = (FORMAT_1 / "plan.json").read_text()
HEADER = (FORMAT_1 / "header.json").read_text()
FINGERPRINT = (FORMAT_1 / "fingerprint.txt").read_text().strip()


def steps_of(folder, *more):
    return [*job(folder), "--out", folder / "old", "--quiet", *more]


def sign(checkpoint, fingerprint):
    """Let the checkpoint say that it belongs to the plan of this fingerprint."""
    with safe_open(checkpoint, "pt") as file:
        header = file.metadata()
    tensors = load_file(checkpoint)
    header = {n: x for n, x in header.items() if n != "digest"} | {"plan": fingerprint}
    save_file(tensors, checkpoint, header | {"digest": digest(tensors, header)})


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A run of 7 steps whose plan, checkpoint and export say what format 1 said."""
    monkeypatch.chdir(tmp_path)  # the place of a rule, in plan and header, is as the caller says it
    folder = whole_run(Path())
    assert call(*steps_of(folder, "--max-steps", "7")) == 0
    run = folder / "old"
    (run / "plan.json").write_text(PLAN)
    sign(run / "checkpoint" / "last.safetensors", FINGERPRINT)
    exported = run / "sparse.safetensors"
    tensors = load_file(exported)
    own_digest = json.loads(HEADER) | {"digest": digest(tensors)}
    save_file(tensors, exported, {"format": "pt", "dcil": json.dumps(own_digest)})
    return folder


def test_the_fingerprint_of_a_plan_of_format_1_is_the_one_in_its_checkpoint():
    assert stored_fingerprint(json.loads(PLAN)) == FINGERPRINT


def test_a_plan_of_format_1_is_the_plan_that_the_recipe_has_now(tmp_path):
    now = Plan.from_json((whole_run(tmp_path) / "run" / "plan.json").read_text())
    assert plan_differences(Plan.from_json(PLAN), now) == []


def test_an_old_run_is_evaluated_verified_and_exported(old_run):
    run = old_run / "old"
    assert call("eval", run, *own(old_run)) == 0
    assert call("verify", run) == 0
    assert call("verify", run / "sparse.safetensors") == 0
    assert call("export", run, "--to", "safetensors", *own(old_run)) == 0
    assert call("verify", run / "sparse.safetensors") == 0


def test_an_old_run_resumes_and_ends_with_the_bits_of_a_straight_one(old_run):
    assert call(*steps_of(old_run, "--resume")) == 0
    ours, straight = (load_file(old_run / n / "sparse.safetensors") for n in ("old", "run"))
    assert all(torch.equal(ours[name], straight[name]) for name in straight)
    assert call("verify", old_run / "old") == 0


def test_an_old_checkpoint_of_another_plan_is_refused(old_run, capsys):
    other = PLAN.replace('"lr": 0.05', '"lr": 0.06')
    assert other != PLAN
    (old_run / "old" / "plan.json").write_text(other)
    assert call("eval", old_run / "old", *own(old_run)) == 2
    assert "belongs to another plan" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["groups", "paths", "losses", "train", "data"])
@pytest.mark.parametrize("damage", [None, 3, [3], {}, "gone"])
def test_a_damaged_plan_of_format_1_is_refused_as_any_other(part, damage):
    values = json.loads(PLAN)
    if part == "data" and damage == {}:
        pytest.skip("data may have no settings")
    values.pop(part) if damage == "gone" else values.update({part: damage})
    with pytest.raises(ValidationError):
        Plan.from_json(json.dumps(values))


def test_a_damaged_header_of_format_1_is_refused():
    for promises in (None, 3, [{}], [{"allocation": "global", "unit": 3}]):
        with pytest.raises(ValidationError):
            Origin.model_validate(json.loads(HEADER) | {"promises": promises})


def test_a_run_whose_plan_lacks_the_fields_of_later_versions_resumes_to_the_same_bits(
    tmp_path, monkeypatch
):
    """The plan and its fingerprint are those of an earlier version, without ties and stop."""
    monkeypatch.chdir(tmp_path)
    folder, earlier = whole_run(Path()), FORMAT_1.parent / "format_2"
    assert call(*steps_of(folder, "--max-steps", "7")) == 0
    text = (earlier / "plan.json").read_text()
    assert "ties" not in json.loads(text)["groups"][0] and "stop" not in json.loads(text)["train"]
    (folder / "old" / "plan.json").write_text(text)
    sign(
        folder / "old" / "checkpoint" / "last.safetensors",
        (earlier / "fingerprint.txt").read_text().strip(),
    )
    assert call("verify", folder / "old") == call("eval", folder / "old", *own(folder)) == 0
    assert call(*steps_of(folder, "--resume")) == 0
    ours, straight = (load_file(folder / n / "sparse.safetensors") for n in ("old", "run"))
    assert all(torch.equal(ours[name], straight[name]) for name in straight)
