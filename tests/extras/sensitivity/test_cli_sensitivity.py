"""`dcil sensitivity` from the command line: recipes, runs, files, and what is missing."""

import pytest
import torch
from support.tiny_job import NET, RECIPE, call, job, net, own

from dcil_dsl.data.dataset import Tensors
from dcil_dsl.extras.sensitivity.job import evenly_spaced
from dcil_dsl.extras.sensitivity.profile import read_profile


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measure(*arguments):
    more = ("--device", "cpu", "--batches", "1", "--levels", "50%,90%")
    return call("sensitivity", *arguments, *more)


def test_a_recipe_is_measured_and_the_profile_written(here, capsys):
    torch.manual_seed(1)
    torch.save(net(here).state_dict(), "trained.pth")
    status = measure(
        "tiny.prune",
        "--model",
        "net.py:Net",
        "--train",
        "synthetic",
        "--weights",
        "trained.pth",
        "--json",
        "profile.json",
    )
    out, err = capsys.readouterr()
    profile = read_profile(here / "profile.json")
    assert status == 0 and "warning" not in err
    assert (profile.num_batches, profile.num_examples, profile.levels) == (1, 64, (0.5, 0.9))
    assert [layer.parameter for layer in profile.layers] == ["0.weight", "3.weight", "8.weight"]
    assert "net.py:Net on 64 held-out examples of synthetic" in out
    assert 'prune ... to sensitivity(90%, profile="profile.json")' in out


def test_fresh_weights_are_warned_about_and_no_recipe_is_needed(here, capsys):
    assert measure("--model", "net.py:Net", "--train", "synthetic") == 0
    out, err = capsys.readouterr()
    assert "warning: the weights are fresh" in err and "FRESH" in out


def test_a_run_brings_its_model_its_data_and_its_dense_weights(here, capsys):
    assert call(*job(here), "--out", "run", "--max-steps", "3", "--quiet") == 0
    capsys.readouterr()
    assert measure("run", *own(here)) == 0
    out, err = capsys.readouterr()
    assert "path dense, step 3" in out and "warning" not in err


def test_a_profile_becomes_a_target_that_is_trained_to_and_proved(here, capsys):
    measure("--model", "net.py:Net", "--train", "synthetic", "--json", "profile.json")
    target = 'sensitivity(70%, profile="profile.json")'
    (here / "tiny.prune").write_text(
        RECIPE.replace("global(target)", target)
        .replace("let target = 90%", "")
        .replace("sparsity >= 89%", "sparsity >= 70%")
    )
    assert call(*job(here), "--out", "run", "--quiet") == 0
    assert call("verify", "run") == 0
    out = capsys.readouterr().out
    assert "expect sparsity >= 70%" in out


def test_training_examples_may_be_measured_on_instead(here, capsys):
    assert measure("--model", "net.py:Net", "--train", "synthetic", "--part", "train") == 0
    assert "on 128 training examples of synthetic" in capsys.readouterr().out
    assert measure("--model", "net.py:Net", "--train", "synthetic", "--part", "test") == 2


def test_what_is_missing_is_reported(here, capsys):
    assert measure("tiny.prune") == 2
    assert "--model SPEC and --train DATA: what is to be measured" in capsys.readouterr().err
    assert call("sensitivity", "--json", "nowhere/p.json") == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert call("sensitivity", "--levels", "50") == 2
    assert "--levels 50: not a percentage" in capsys.readouterr().err


def test_examples_are_taken_from_all_over_the_held_out_part():
    labels = torch.arange(10)
    taken = evenly_spaced(Tensors(torch.zeros(10, 1, 2, 2), labels), 4)
    assert taken.labels.tolist() == [0, 2, 5, 7]
    assert [evenly_spaced(list("abcdefghij"), 4)[i] for i in range(4)] == ["a", "c", "f", "h"]


def test_a_profile_that_cannot_be_written_is_reported_and_shown_all_the_same(here, capsys):
    arguments = ("--model", "net.py:Net", "--train", "synthetic", "--json")
    assert measure(*arguments, ".") == 2
    assert "--json . is a folder" in capsys.readouterr().err
    assert measure(*arguments, f"{'p' * 300}.json") == 2
    out, err = capsys.readouterr()
    assert "rules for 90%" in out and "cannot write ppp" in err and "Traceback" not in err
