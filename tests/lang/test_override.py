"""`--set NAME=VALUE`."""

from __future__ import annotations

import pytest
from support.sound import completed

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.words.units import Percent, Time

TEXT = completed(
    """let target = 90%
model resnet18 { classes = 10 }
data digits { batch_size = 64 }
pruning { score = l2 }
prune Conv2d to target { refresh = 4 steps }
prune Linear to 50%
"""
)


def with_set(**overrides):
    return loads(TEXT, overrides={k.replace("__", "."): v for k, v in overrides.items()})


def errors_of(**overrides):
    with pytest.raises(RecipeError) as error:
        with_set(**overrides)
    return error.value.diagnostics


def test_a_let_and_settings_are_replaced_and_recorded():
    recipe = with_set(target="95%", train__epochs="5ep", data__batch_size="32", model__classes="3")
    assert recipe.rules[0].target.sparsity == Percent(0.95)
    assert recipe.train.epochs == Time(5, "epochs")
    assert (recipe.data.batch_size, recipe.model.classes) == (32, 3)
    assert recipe.overrides[0] == ("target", "95%") and len(recipe.overrides) == 4


def test_a_setting_of_pruning_holds_for_every_rule():
    recipe = with_set(pruning__refresh="32 steps")
    assert [rule.refresh for rule in recipe.rules] == [Time(32, "steps")] * 2


def test_a_setting_that_was_not_given_is_added():
    recipe = with_set(train__seed="3", data__augment="[flip()]", model__width="0.5")
    assert recipe.train.seed == 3 and len(recipe.data.augment) == 1
    assert recipe.model.options == (("width", 0.5),)


def test_the_closed_text_holds_the_overrides():
    recipe = with_set(target="95%")
    assert loads(recipe.text) == recipe


@pytest.mark.parametrize(
    "name, near",
    [("tarjet", "target"), ("train.epoch", "train.epochs"), ("tran.epochs", "train.epochs")],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, near):
    (only,) = errors_of(**{name.replace(".", "__"): "3"})
    assert (only.code, only.help) == ("E222", f"did you mean `{near}`?")


def test_a_block_that_the_recipe_has_not_is_added():
    given = {"data.batch_size": "3", "model.classes": "5", "pruning.refresh": "2 steps"}
    recipe = loads(completed("keep Linear"), overrides=given)
    assert (recipe.data.name, recipe.data.batch_size, recipe.model.classes) == (None, 3, 5)
    assert loads(recipe.text) == recipe


def test_a_block_without_a_name_keeps_that_of_the_parent(tmp_path):
    (tmp_path / "parent.prune").write_text(TEXT)
    child = 'language 1\nextends "parent.prune"\ndata { batch_size = 8 }\nmodel { classes = 3 }\n'
    recipe = loads(child, folder=tmp_path)
    assert (recipe.data.name, recipe.data.batch_size) == ("digits", 8)
    assert (recipe.model.name, recipe.model.classes) == ("resnet18", 3)


def test_the_name_of_a_recipe_cannot_come_from_an_override():
    with pytest.raises(RecipeError, match="E222.*no `recipe` block"):
        loads(completed("keep Linear"), overrides={"recipe.title": '"x"'})


@pytest.mark.parametrize(
    "value", ["3 4", "", "90% }", "3\nprune Conv2d to 9%", "x y", "language 1"]
)
def test_what_is_not_one_value_is_an_error(value):
    (only,) = errors_of(target=value)
    assert only.code == "E101"


def test_a_value_of_the_wrong_kind_points_into_the_override():
    (only,) = errors_of(train__epochs="90%")
    assert only.code == "E206"
    assert (only.span.source.text, only.span.column) == ("train.epochs=90%", 14)
