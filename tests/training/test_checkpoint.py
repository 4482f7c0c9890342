"""Checkpoints are whole, of this plan, and hold the sparsity that was asked for; or say so."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.in_steps import each_layer, linear
from support.same_runs import assert_same
from support.tiny_run import tiny_dual, tiny_plan, tiny_train
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.digest import digest
from dcil_dsl.training.checkpoint import load_deployed, load_model, read_file
from dcil_dsl.training.files import write_text
from dcil_dsl.training.sparsity import SparsityError, check_sparsity


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    _, dual, run = tiny_train(tmp_path_factory.mktemp("runs") / "run", max_steps=8)
    return dual, run.checkpoint


def test_the_deployed_weights_come_back(trained):
    dual, path = trained
    fresh = tiny_dual()
    position = load_deployed(path, fresh)
    assert position.step == 8
    have, want = fresh.state_dict(), dual.state_dict()
    assert [name for name in want if not torch.equal(have[name], want[name])] == []


def test_a_missing_or_foreign_file_is_a_plain_error(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_deployed(tmp_path / "none.safetensors", tiny_dual())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is not a checkpoint of this version"):
        load_deployed(tmp_path / "other.safetensors", tiny_dual())


def test_a_checkpoint_of_another_plan_is_refused(trained):
    with pytest.raises(InputError, match="belongs to another plan"):
        load_deployed(trained[1], tiny_dual(tiny_plan(group={"refresh": 4})))


def test_loading_is_strict_and_names_the_tensor(tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="it lacks `bias`"):
        load_model(model, {"weight": torch.zeros(2, 2)}, tmp_path)
    with pytest.raises(InputError, match=r"`weight` has shape \(3, 2\) and not \(2, 2\)"):
        load_model(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, tmp_path)


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    _, _, run = tiny_train(tmp_path / "run", max_steps=5)
    before = run.checkpoint.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot write .*: No space left on device"):
        tiny_train(tmp_path / "run", resume=True)
    assert run.checkpoint.read_bytes() == before
    assert os.listdir(run.checkpoint.parent) == ["last.safetensors"]


def test_the_file_holds_tensors_that_any_reader_loads(trained):
    tensors = load_file(trained[1])
    assert tensors["model/conv1.weight_mask"].dtype == torch.bool


def test_an_edited_mask_is_not_what_the_plan_asks():
    dual = tiny_dual()
    dual.refresh(12)
    assert check_sparsity(dual, 12).num_kept == 64
    mask = dual.masks["conv1.weight"]
    place = mask.nonzero()[0].tolist()
    mask[tuple(place)] = False
    with pytest.raises(SparsityError, match="64 of 324 weights asked, 63 kept"):
        check_sparsity(dual, 12)


def test_a_uniform_rule_is_checked_layer_by_layer():
    dual = tiny_dual(tiny_plan(group={"target": each_layer(0.8)}))
    dual.refresh(12)
    assert check_sparsity(dual, 12).num_kept == 7 + 57
    dual.masks["conv2.weight"].fill_(True)
    with pytest.raises(SparsityError, match="conv2.weight: 57 of 288 weights asked, 288 kept"):
        check_sparsity(dual, 12)


def test_training_stops_where_the_masks_are_not_the_plans(tmp_path, monkeypatch):
    from dcil_dsl.compiler.dual import Dual

    monkeypatch.setattr(Dual, "_refresh", lambda self, group, step: None)
    with pytest.raises(SparsityError, match="all|weights asked, 324 kept"):
        tiny_train(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint" / "last.safetensors").exists()


def test_no_mask_moves_after_the_last_step(tmp_path):
    plan = tiny_plan(group={"schedule": linear(0, 20)})
    result, _, run = tiny_train(tmp_path / "run", plan)
    assert result.sparsity_asked == pytest.approx(0.8 * 18 / 20)  # masks move at 0, 3, .. 18
    assert load_deployed(run.checkpoint, tiny_dual(plan)).step == 20


def test_every_file_has_the_permissions_that_the_user_gives_to_new_files(tmp_path):
    mask = os.umask(0o027)
    try:
        _, _, run = tiny_train(tmp_path / "run", max_steps=1)
    finally:
        os.umask(mask)
    files = [run.checkpoint, run.plan, run.recipe, run.metrics]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    draft = tmp_path / ".notes.txt.draft"
    draft.write_text("half")
    draft.chmod(0o000)
    write_text(tmp_path / "notes.txt", "whole")
    assert (tmp_path / "notes.txt").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_a_checkpoint_of_before_logged_was_called_so_resumes_to_the_same_bits(tmp_path):
    tiny_train(tmp_path / "straight")
    _, _, run = tiny_train(tmp_path / "run", max_steps=10)
    tensors, header = read_file(run.checkpoint)
    position = json.loads(header["position"])
    position["told"] = position.pop("logged")
    header["position"] = json.dumps(position)
    save_file(tensors, run.checkpoint, header | {"digest": digest(tensors, header)})
    tiny_train(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
