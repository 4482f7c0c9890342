"""`dcil import` says of a SparseML recipe what a recipe can express, and lists the rest by line."""

from __future__ import annotations

import pytest
from typer.main import get_command

pytest.importorskip("yaml", reason="the extra `sparseml`")

from dcil_dsl.cli.commands import app
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sparseml.read import read_modifiers
from dcil_dsl.extras.sparseml.translate import translate
from dcil_dsl.lang import loads
from dcil_dsl.lang.fmt import format_text

ONE = """pruning_modifiers:
  - !GMPruningModifier
    params: [layer1.0.conv1.weight, 're:layer2.*conv1.weight']
    init_sparsity: 0.0
    final_sparsity: 0.8
    start_epoch: 1.0
    end_epoch: 8.0
    update_frequency: 0.5
"""
WHOLE = (
    """# Title

---
epochs: &epochs 10
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: *epochs
  - !SetLearningRateModifier
    start_epoch: 0.0
    learning_rate: 0.008
"""
    + ONE
    + "---\n\nWords: after.\n"
)


def imported(text: str):
    return translate(read_modifiers(text, "r.yaml"), "r", "r.yaml")


def test_a_recipe_that_can_be_said_whole_has_no_losses_and_is_canonical():
    done = imported(WHOLE)
    assert done.losses == [] and format_text(done.text) == done.text
    recipe = loads(done.text)
    (rule,) = recipe.rules
    assert recipe.train.epochs.value == 10 and recipe.train.optimizer.lr == 0.008
    assert 'prune "layer1.0.conv1", re"layer2.*conv1" to uniform(80%)' in done.text
    assert "schedule = cubic(1ep..8ep)" in done.text and rule.forget
    assert "refresh  = 0.5ep" in done.text and "freeze   = 8ep" in done.text


def test_the_layers_are_those_whose_parameters_the_original_matches():
    import torch
    from torch import nn

    from dcil_dsl.model.trace import trace_model
    from dcil_dsl.plan.resolve import resolve_recipe

    net = nn.Sequential()
    for name in ("conv", "convs", "my_conv", "fc", "conv_fc"):
        net.add_module(name, nn.Linear(4, 4))
    import re

    for pattern in ("conv", "conv.weight", r"conv\.weight$", ".*conv", ".*conv.*", "fc|conv"):
        text = imported(
            ONE.replace("layer1.0.conv1.weight, 're:layer2.*conv1.weight'", f"'re:{pattern}'")
        ).text
        plan = resolve_recipe(loads(text), trace_model(net, (torch.zeros(1, 4),)), 10)
        pruned = {layer.parameter for layer in plan.layers if layer.group is not None}
        names = [name for name, _ in net.named_parameters() if name.endswith("weight")]
        assert pruned == {name for name in names if re.match(pattern, name)}, pattern


@pytest.mark.parametrize(
    "given, said",
    [
        ("mask_type: filter", "granularity = filter"),
        ("mask_type: [4, 1]", "block(4, 1)"),
        ("global_sparsity: True", "to global(80%)"),
        ("inter_func: linear", "linear(1ep..8ep)"),
        ("mask_type: unstructured", "uniform(80%)"),
        ("log_types: __ALL__", "uniform(80%)"),
    ],
)
def test_a_setting_that_can_be_said_is_said_without_a_loss(given, said):
    done = imported(ONE + f"    {given}\n")
    assert done.losses == [] and said in done.text.replace("  ", " ")


@pytest.mark.parametrize(
    "given", ["inter_func: inverse_cubic", "mask_type: 2:4", 'params: __ALL_LAYERS__/"x"']
)
def test_a_modifier_that_cannot_be_said_is_left_out_and_named_with_its_line(given):
    key = given.partition(":")[0]
    lines = [line for line in ONE.splitlines() if f" {key}:" not in line]
    second = "\n".join([*lines, f"    {given}"]).partition("pruning_modifiers:\n")[2]
    done = imported(ONE + second + "\n")
    at = 1 + len(ONE.splitlines()) + second.splitlines().index(f"    {given}")
    assert at in [line for line, _ in done.losses]
    assert done.text.count("prune ") == 1 and f"# - line {at}:" in done.text


@pytest.mark.parametrize("key", ["start_epoch", "end_epoch", "final_sparsity"])
@pytest.mark.parametrize(
    "code",
    ["__import__('os').abort()", "9**9**9", "a", "loop", "1 / 0", "[1][0]", "-" * 500 + "1", "two"],
)
def test_an_expression_that_is_not_arithmetic_is_not_evaluated(key, code):
    stages = "loop: eval(loop + 1)\ns1:\n  two: 1\ns2:\n  two: 2\n"
    text = stages + ONE.replace(f"{key}: ", f'{key}: "eval({code})" # ')
    with pytest.raises(InputError, match="no pruning that a recipe can express"):
        imported(text)


def test_arithmetic_on_variables_is_evaluated_as_in_sparseml():
    """As in the recipes that SparseML ships since 1.0: everything stands in `eval`."""
    text = (
        "num_epochs: 10\nstart_target: 0.1\nsparsity: 0.8\nend: eval(num_epochs - 2)\n"
        "stage:\n  shape: linear\n"
        + ONE.replace("start_epoch: 1.0", "start_epoch: eval(start_target * num_epochs)")
        .replace("end_epoch: 8.0", "end_epoch: eval(end)")
        .replace("final_sparsity: 0.8", "final_sparsity: eval(sparsity)")
        + "    inter_func: eval(shape)\n"
    )
    done = imported(text)
    assert done.losses == []
    assert "linear(1ep..8ep)" in done.text and "uniform(80%)" in done.text


def test_a_ramp_that_falls_is_left_out_and_the_rest_is_translated():
    """As in vit_base.85.recal.config.yaml of SparseML: from 25% to 3%."""
    falling = ONE.replace("init_sparsity: 0.0", "init_sparsity: 0.25").replace("0.8", "0.03")
    done = imported(ONE + falling.partition("pruning_modifiers:\n")[2])
    assert done.text.count("prune ") == 1
    assert any("init_sparsity 0.25 is not below" in loss for _, loss in done.losses)


def test_sparsities_by_parameters_are_a_rule_each():
    text = ONE.replace("final_sparsity: 0.8", "final_sparsity: {0.8: [a.weight], 0.9: [b.weight]}")
    done = imported(text)
    assert 'prune "a" to uniform(80%)' in done.text and 'prune "b" to uniform(90%)' in done.text


def test_other_modifiers_are_named_with_their_lines():
    done = imported(
        "quantization_modifiers:\n  - !QuantizationModifier\n    start_epoch: 3\n" + ONE
    )
    assert done.losses == [(2, "QuantizationModifier")]


def test_an_initial_sparsity_before_the_start_is_named_as_a_difference():
    done = imported(ONE.replace("init_sparsity: 0.0", "init_sparsity: 0.05"))
    assert [line for line, _ in done.losses] == [4] and "initial=5%" in done.text


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: [", "not YAML"),
        ("a: 1\n", "no modifiers of SparseML"),
        ("", "no modifiers of SparseML"),
        ("a: !!python/object/apply:os.system ['true']\n", "no modifiers of SparseML"),
        ("[" * 5000, "not YAML"),
        ("pruning:\n  - !GMPruningModifier\n    x: 1\n", "no pruning that a recipe can express"),
    ],
)
def test_what_is_no_recipe_of_sparseml_is_refused_in_a_sentence(text, told):
    with pytest.raises(InputError, match=told):
        imported(text)


def test_aliases_that_double_are_read_once():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert len(read_modifiers(bomb + ONE, "r")) == 1


def test_the_verb_writes_the_file_names_the_losses_and_overwrites_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(ONE + "    phased: True\n")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            get_command(app)(args=list(arguments), prog_name="dcil")
        return end.value.code, capsys.readouterr()

    code, shown = run("import", "r.yaml")
    assert code == 1 and "r.yaml:9: not in the recipe: phased" in shown.err
    assert loads((tmp_path / "r.prune").read_text()).rules
    code, shown = run("import", "r.yaml")
    assert code == 2 and "r.prune exists already" in shown.err
    code, shown = run("import", "gone.yaml")
    assert code == 2 and "cannot read gone.yaml" in shown.err
