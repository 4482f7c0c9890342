"""`extends`, `let` and units: what a recipe and its parents mean together."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sound import completed

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang import ast, load, loads
from dcil_dsl.words.augment import Flip
from dcil_dsl.words.targets import Global
from dcil_dsl.words.units import (
    Percent,
    Range,
    Ratio,
    Time,
    UnitError,
    combine,
    written,
)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

PARENT = completed(
    """recipe parent {
  title   = "parent"
  version = "1.0"
}
let target = 90%
data cifar10 {
  batch_size = 128
  augment    = [flip()]
}
prune Conv2d to global(target)
"""
)


@pytest.fixture
def family(tmp_path):
    """Write files by name and load the last."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.prune").write_text(text)
        return load(tmp_path / f"{name}.prune")

    return write


def errors_of(family, **texts):
    with pytest.raises(RecipeError) as error:
        family(**texts)
    return error.value.diagnostics


def test_a_child_is_rid_of_a_word_of_its_parents_by_none(family):
    parent = completed(
        "pruning {\n  regrow = gradient(30%)\n  param = power(2)\n  granularity = weight\n}\n"
        "train {\n  epochs = 10ep\n  optimizer = sgd(lr=0.1)\n  integrator = heun()\n}\n"
    )
    child = (
        'language 1\nextends "parent.prune"\n'
        "pruning {\n  regrow = none\n  param = none\n  granularity = none\n}\n"
        "train { integrator = none }\n"
    )
    recipe = family(parent=parent, child=child)
    assert (recipe.rules[0].regrow, recipe.rules[0].param) == (None, None)
    assert recipe.train.integrator is None


def test_what_must_have_a_value_is_not_none(family):
    (error,) = errors_of(family, one=completed("pruning { schedule = none }\n"))
    assert error.code == "E206"


def test_a_child_replaces_the_lets_of_its_parent(family):
    child = family(parent=PARENT, child='language 1 extends "parent.prune" let target = 95%')
    assert child.rules[0].target == Global(sparsity=Percent(0.95))


def test_settings_merge_by_key(family):
    child = family(
        parent=PARENT,
        child='language 1 extends "parent.prune" recipe child { title = "child" }'
        " data cifar100 { batch_size = 64 } train { seed = 7 }",
    )
    assert (child.about.name, child.about.title, child.about.version) == ("child", "child", "1.0")
    assert (child.data.name, child.data.batch_size) == ("cifar100", 64)
    assert child.data.augment == (Flip(),)
    assert child.train.seed == 7 and child.train.epochs == Time(10, "epochs")


def test_rules_are_appended_and_mix_is_replaced_whole(family):
    child = family(
        parent=PARENT,
        child='language 1 extends "parent.prune" keep first Conv2d mix { path one = masked '
        "update kept, pruned by one loss cross_entropy(one) deploy one }",
    )
    assert [type(rule).__name__ for rule in child.rules] == ["PruneRule", "KeepRule"]
    assert [path.name for path in child.paths] == ["one"]


def test_an_error_in_a_parent_is_shown_in_the_parent(family):
    (only,) = errors_of(
        family, parent=PARENT.replace("flip()", "flop()"), child='language 1 extends "parent.prune"'
    )
    assert only.code == "E210" and only.span.source.name.endswith("parent.prune")
    (only,) = errors_of(
        family, parent="language 1 purne", child='language 1 extends "parent.prune"'
    )
    assert only.code == "E105" and only.span.source.name.endswith("parent.prune")


def test_recipes_that_extend_each_other_are_an_error(family):
    (only,) = errors_of(family, a='language 1 extends "b.prune"', b='language 1 extends "a.prune"')
    assert only.code == "E202"
    (only,) = errors_of(family, a='language 1 extends "a.prune"')
    assert only.code == "E202"


def test_a_chain_of_parents_has_an_end(family):
    chain = {f"r{i}": f'language 1 extends "r{i - 1}.prune"' for i in range(1, 12)}
    (only,) = errors_of(family, r0=PARENT, **chain)
    assert only.code == "E203"


def test_a_missing_parent_is_an_error_with_the_nearest_name(family):
    (only,) = errors_of(family, parent=PARENT, child='language 1 extends "parents.prune"')
    assert (only.code, only.help) == ("E201", "did you mean `parent.prune`?")


def test_a_text_without_a_folder_extends_nothing():
    with pytest.raises(RecipeError, match="E201"):
        loads('language 1 extends "parent.prune"')


def test_a_let_may_use_others_and_be_a_whole_call():
    recipe = loads(
        completed(
            "let half = 50%\nlet most = half + 40%\nlet warm = 2 * 3ep - 1ep\n"
            "let ramp = cubic(warm..80% run)\n"
            "prune Conv2d to global(most) { schedule = ramp freeze = 90% run }"
        )
    )
    assert recipe.rules[0].target.sparsity == Percent(0.9)
    assert recipe.rules[0].schedule.over == Range(Time(5, "epochs"), Time(0.8, "run"))


def test_defined_layers_are_put_into_the_selectors_that_name_them():
    recipe = loads(completed('layers stem = "conv1"\nlayers ends = stem, last Linear\nkeep ends'))
    inner = recipe.rules[0].selector
    assert [type(part) for part in inner.parts] == [ast.ByGlob, ast.Last]


def test_layers_defined_in_terms_of_themselves_are_an_error():
    with pytest.raises(RecipeError, match="E223.*in terms of itself"):
        loads(completed("layers a = b\nlayers b = first a\nkeep a"))


@pytest.mark.parametrize(
    "first, others, last",
    [
        ("prune Conv2d to a0", "let a{} = a{}", "let a2000 = 90%"),
        ("prune Conv2d to 90%", "let a{} = a{}", "let a2000 = 90%"),
        ("keep a0", "layers a{} = a{}", "layers a2000 = Linear"),
        ("keep Conv2d", "layers a{} = a{}", "layers a2000 = Linear"),
    ],
)
def test_definitions_that_lead_through_thousands_of_others_are_an_error(first, others, last):
    chain = "\n".join(others.format(i, i + 1) for i in range(2000))
    with pytest.raises(RecipeError, match=r"E114.*`a[01]` is defined through too many") as raised:
        loads(completed(f"{chain}\n{last}\n{first}"))
    assert len([d for d in raised.value.diagnostics if d.is_error]) == 1


def test_a_set_that_doubles_with_each_name_is_an_error_and_not_an_endless_one():
    doubled = "\n".join(f"layers a{i + 1} = a{i}, a{i}" for i in range(25))
    with pytest.raises(RecipeError, match="E114.*is defined through too many other names"):
        loads(completed(f"layers a0 = Conv2d\n{doubled}\nkeep a25"))
    four = "\n".join(f"layers a{i + 1} = a{i}, a{i}" for i in range(4))
    loads(completed(f"layers a0 = Conv2d\n{four}\nkeep a4"))


def test_the_closed_text_loads_to_the_same_recipe():
    text = "let a = 3 * 0.3\nprune Conv2d to a * 100%\nlayers x = Linear\nkeep x"
    recipe = loads(completed(text))
    again = loads(recipe.text)
    assert again == recipe and again.text == recipe.text and "let" not in recipe.text


def test_the_closed_text_says_a_share_below_zero_that_a_let_gave():
    lines = [
        "path sparse = masked",
        "path dense = full",
        "update kept by sparse + a * dense",
        "update pruned by dense",
        "loss cross_entropy(sparse)",
        "loss cross_entropy(dense)",
        "deploy sparse",
    ]
    text = "let a = 0.5 - 1\nmix {\n  " + "\n  ".join(lines) + "\n}"
    recipe = loads(completed(text))
    assert recipe.updates[0].shares == (("sparse", 1.0), ("dense", -0.5))
    assert "by sparse + -0.5 * dense" in recipe.text
    assert loads(recipe.text) == recipe


@pytest.mark.parametrize(
    "left, operator, right, result",
    [
        (Percent(0.9), "+", Percent(0.05), Percent(0.95)),
        (Time(5, "epochs"), "-", Time(2, "epochs"), Time(3, "epochs")),
        (2, "*", Time(16, "steps"), Time(32, "steps")),
        (Percent(0.9), "/", 2, Percent(0.45)),
        (Time(30, "epochs"), "/", Time(10, "epochs"), 3),
        (0.1, "+", 0.2, 0.3),
    ],
)
def test_like_combines_with_like_and_numbers_scale(left, operator, right, result):
    assert combine(operator, left, right) == result


@pytest.mark.parametrize(
    "left, operator, right",
    [
        (Percent(0.9), "+", Time(5, "epochs")),
        (Time(5, "epochs"), "+", Time(5, "steps")),
        (Time(0.5, "run"), "-", Percent(0.5)),
        (Percent(0.9), "+", 1),
        (Percent(0.9), "*", Percent(0.9)),
        (1, "/", Time(5, "epochs")),
        (Ratio(2, 4), "*", 2),
        (True, "+", 1),
    ],
)
def test_units_that_do_not_combine_are_refused(left, operator, right):
    with pytest.raises(UnitError):
        combine(operator, left, right)


@pytest.mark.parametrize(
    "text",
    [
        "90%",
        "0.01%",
        "5ep",
        "0.5ep",
        "1 step",
        "16 steps",
        "75% run",
        "2:4",
        "1e-9",
        "0.0001",
        "none",
        "true",
        '"a"',
    ],
)
def test_a_value_is_written_as_it_was_read(text):
    let = f"language 1 let x = {text}"
    from dcil_dsl.diagnostics import Source
    from dcil_dsl.lang.build import build_file
    from dcil_dsl.lang.parse import parse_text

    assert written(build_file(parse_text(Source(let))).items[0].value.value) == text


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.prune")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_sound_and_its_closed_text_says_the_same(path):
    recipe = load(path)
    assert recipe.warnings == () and loads(recipe.text) == recipe
