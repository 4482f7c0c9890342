"""Run folders: made whole, never overwritten, read back."""

from __future__ import annotations

import os
import signal
import time
from datetime import date

import pytest
from support.tiny_run import tiny_plan

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training import process
from dcil_dsl.training.differences import (
    fingerprint,
    plan_differences,
    text_differences,
)
from dcil_dsl.training.process import Locked, draft_in, hold_run
from dcil_dsl.training.run import create_run, open_run, resume_run


def test_a_new_run_holds_the_texts_and_the_plan(tmp_path):
    run = create_run(tiny_plan(), "given", "resolved", tmp_path / "a" / "run")
    assert (run.recipe.read_text(), run.resolved.read_text()) == ("given", "resolved")
    assert open_run(run.path).read_plan() == tiny_plan()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]


def test_without_a_name_runs_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(create_run(tiny_plan(), "", "").path) for _ in range(2)]
    today = date.today().isoformat()
    assert paths == [f"runs/tiny-{today}-1", f"runs/tiny-{today}-2"]


def test_a_run_is_not_overwritten(tmp_path):
    create_run(tiny_plan(), "", "", tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run") as error:
        create_run(tiny_plan(), "", "", tmp_path / "run")
    assert "--resume" in error.value.help


def test_nothing_else_is_overwritten_either(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file"):
        create_run(tiny_plan(), "", "", tmp_path / "file")
    with pytest.raises(InputError, match="is not empty"):
        create_run(tiny_plan(), "", "", tmp_path)
    (tmp_path / "empty").mkdir()
    assert create_run(tiny_plan(), "", "", tmp_path / "empty").plan.exists()


def test_an_empty_folder_behind_a_link_becomes_the_run(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run = create_run(
        tiny_plan(), "given", "resolved", tmp_path / "run", extra_files={"a.json": "{}"}
    )
    assert open_run(run.path).read_plan() == tiny_plan()
    assert (tmp_path / "disk" / "a.json").read_text() == "{}" and run.checkpoint.parent.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "run"]


@pytest.mark.parametrize("name", [".", "../here", ""])
def test_the_empty_folder_in_which_one_stands_becomes_the_run(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    create_run(tiny_plan(), "given", "resolved", name)
    assert open_run(name).read_plan() == tiny_plan()
    assert os.path.samefile(tmp_path / "here", ".") and "plan.json" in os.listdir()


def test_a_place_that_cannot_be_written_is_a_plain_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write .*file"):
        create_run(tiny_plan(), "", "", tmp_path / "file" / "run")


def test_a_folder_that_may_not_be_looked_into_is_a_plain_error(tmp_path, monkeypatch):
    def refuse(path, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    with pytest.raises(InputError, match="cannot write .*run: Permission denied"):
        create_run(tiny_plan(), "", "", tmp_path / "run")


def test_what_is_no_run_is_not_opened(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_run(tmp_path / "none")
    with pytest.raises(InputError, match="is not a run folder"):
        open_run(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="is not a plan that this version reads"):
        open_run(tmp_path).read_plan()


def test_a_place_inside_a_run_is_reported_with_the_run(tmp_path):
    run = create_run(tiny_plan(), "", "", tmp_path / "run")
    run.checkpoint.parent.mkdir(exist_ok=True)
    with pytest.raises(InputError, match="is not a run folder") as error:
        open_run(run.checkpoint.parent)
    assert error.value.help == f"did you mean {run.path}?"
    with pytest.raises(InputError, match="plan.json is a file, not a run folder"):
        open_run(run.plan)


def test_only_what_changes_the_training_is_a_difference():
    plan = tiny_plan()
    renamed = plan.model_copy(update={"recipe": p.About(name="other", sha256="1" * 64)})
    assert plan_differences(plan, renamed) == [] and fingerprint(plan) == fingerprint(renamed)
    other = tiny_plan(train={"seed": 4, "ema": None})
    assert plan_differences(plan, other) == [
        "train.ema: 0.9 in the run, none now",
        "train.seed: 3 in the run, 4 now",
    ]
    assert fingerprint(plan) != fingerprint(other)


def test_many_differences_are_counted(tmp_path):
    run = create_run(tiny_plan(), "", "", tmp_path / "run")
    other = tiny_plan(
        train={"seed": 4, "ema": None, "clip": None, "num_epochs": 5, "precision": "bf16"},
        num_steps=25,
    )
    with pytest.raises(InputError, match="another plan") as error:
        resume_run(run.path, other)
    lines = error.value.help.splitlines()
    assert lines[-2] == "and 1 more" and "--resume-anyway" in lines[-1]


def test_of_two_texts_the_lines_that_went_and_came_are_reported():
    old, new = "let a = 90%\nkeep\n  b {\n", "let a = 95%\nkeep\n\nb {\n--c\n"
    assert text_differences(old, new) == ["- let a = 90%", "+ let a = 95%", "+ --c"]
    assert text_differences(old, old.replace("  b", "b")) == []


def test_a_layer_more_is_one_difference_and_not_one_of_every_layer_after_it():
    plan = tiny_plan()
    more = plan.layers[0].model_copy(update={"parameter": "conv0.weight"})
    changed = plan.model_copy(update={"layers": (more, *plan.layers)})
    assert plan_differences(plan, changed) == ["layers.conv0.weight: none in the run, there now"]


def test_a_torn_last_line_counts_as_not_written(tmp_path):
    run = create_run(tiny_plan(), "", "", tmp_path / "run")
    run.append_metrics({"epoch": 1})
    run.append_metrics({"epoch": 2})
    with open(run.metrics, "a") as file:
        file.write('{"epo')
    assert run.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    run.cut_metrics(1)
    assert run.metrics.read_text() == '{"epoch": 1}\n'


def test_a_worker_that_outlives_its_killed_run_does_not_hold_the_folder(tmp_path):
    """As a process that reads images does for some seconds."""
    run = create_run(tiny_plan(), "", "", tmp_path / "run")
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        with hold_run(run.path):
            if os.fork() == 0:
                os.write(tell, b"the worker is there")
            time.sleep(60)
            os._exit(0)
    try:
        os.read(listen, 100)
        with pytest.raises(InputError, match="another process is training"), hold_run(run.path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with hold_run(run.path):
            pass
    finally:
        os.killpg(child, signal.SIGKILL)


# -- process --------------------------------------------------------------------------------------


def test_a_run_that_is_counted_has_its_name_whatever_files_lie_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create_run(tiny_plan(), "", "", extra_files={"command.json": "{}"})
    assert str(run.path) == f"runs/tiny-{date.today().isoformat()}-1"
    assert (run.path / "command.json").read_text() == "{}"


def killed_with_a_draft(parent):
    """A process that makes a draft and is killed while another one looks; (draft, kill)."""
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with draft_in(parent, "run") as draft:
            (draft / "plan.json").write_text("{}")
            os.write(tell, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(listen, 1)
    (draft,) = parent.glob(".run*")

    def kill():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    return draft, kill


def test_a_draft_that_a_killed_process_left_is_removed_by_the_next_run(tmp_path):
    draft, kill = killed_with_a_draft(tmp_path)
    try:
        create_run(tiny_plan(), "", "", tmp_path / "other")
        assert (draft / "plan.json").exists()  # its process is alive
    finally:
        kill()
    (tmp_path / ".run.settings").mkdir()  # somebody else's
    create_run(tiny_plan(), "", "", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.settings", "other", "run"]


def test_a_draft_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, seen = process.lock, []

    def too_late(folder):
        seen.append(folder)
        if len(seen) == 1:
            folder.rmdir()
        elif len(seen) == 2:
            held = lock(folder)
            folder.rmdir()
            return held
        elif len(seen) == 3:
            raise Locked
        return lock(folder)

    monkeypatch.setattr(process, "lock", too_late)
    with draft_in(tmp_path, "run") as draft:
        assert draft == seen[3] and draft.is_dir()
    assert not draft.exists()


def test_many_runs_at_once_each_have_their_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    children = []
    for _ in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                with hold_run(create_run(tiny_plan(), "", "").path):
                    status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    names = [f"tiny-{date.today().isoformat()}-{n}" for n in range(1, 9)]
    assert sorted(os.listdir("runs")) == names
    assert all(os.path.exists(f"runs/{name}/plan.json") for name in names)
