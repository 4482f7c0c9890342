"""A run that deploys a path which sees pruned weights: its numbers are those of its file."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_job import NET, RECIPE, call, job, own

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang import loads

DENSE = RECIPE.replace("deploy sparse", "deploy dense").replace(">= 89%", "<= 1%")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    (folder / "tiny.prune").write_text(DENSE)
    (folder / "net.py").write_text(NET)
    assert call(*job(folder), "--out", folder / "run") == 0
    return folder


def test_a_deployed_full_path_is_measured_as_the_zeros_of_its_file(folder):
    report = json.loads((folder / "run" / "report.json").read_text())
    tensors = load_file(folder / "run" / "sparse.safetensors")
    assert not (tensors["3.weight"] == 0).any()
    result = report["result"]
    assert result["sparsity_measured"] == report["expect"][0]["measured"] == 0
    assert result["sparsity_asked"] == 0.9
    assert result["sparsity_counted"] == 0 and result["num_kept"] == result["num_weights"]
    assert [rule["kept"] for rule in result["rules"]] == [result["num_weights"]]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["sparsity_measured"] for line in lines} == {0}


def test_eval_judges_the_zeros_that_the_deployed_path_has(folder, capsys):
    assert call("eval", folder / "run", *own(folder), "--device", "cpu") == 0
    assert "expect sparsity <= 1%: measured 0.0000%, holds" in capsys.readouterr().out


def test_the_verbs_that_list_runs_show_no_zeros(folder, capsys):
    for verb in (("runs", folder), ("report", folder / "run", "--out", folder / "page.html")):
        assert call(*verb) == 0
    assert "90%" not in capsys.readouterr().out.replace("90% asked", "")


def test_deploying_a_full_path_where_rules_prune_is_a_warning_at_deploy():
    (warning,) = loads(DENSE).warnings
    assert (warning.code, warning.span.text) == ("W208", "deploy dense")
    assert "no zeros" in warning.message


def test_a_deployed_complement_is_refused_before_any_training():
    text = RECIPE.replace("path dense  = full", "path dense  = complement")
    with pytest.raises(RecipeError) as error:
        loads(text.replace("deploy sparse", "deploy dense"))
    assert [d.code for d in error.value.diagnostics] == ["E244"]


def test_without_a_rule_that_prunes_any_path_may_be_deployed():
    rule = RECIPE[RECIPE.index("prune Conv2d") : RECIPE.index("mix {")]
    text = DENSE.replace(rule, "").replace("expect { sparsity <= 1% }", "")
    assert "W208" not in {warning.code for warning in loads(text).warnings}


def test_each_view_says_where_it_may_be_other_than_zero():
    from dcil_dsl.words.views import Complement, Full, Masked

    weight, mask = torch.ones(4), torch.tensor([True, False, True, True])
    for view in (Masked(), Full(), Complement()):
        assert torch.equal(view.left(mask), view.of(weight, mask) != 0)
