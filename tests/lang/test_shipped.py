"""Recipes that come with the program have names, on the command line and in `extends`."""

import runpy
from pathlib import Path

import pytest
from support.tiny_job import call

import dcil_dsl as dcil
from dcil_dsl.lang import loads
from dcil_dsl.lang.shipped import NoRecipe, file_of, names, shipped

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALLEST = """language 1
extends "dcil:methods/dcil"
recipe mine { title = "DCIL to 95%" }
let target = 95%
train { epochs = 5ep }
"""


def test_every_recipe_has_a_name_and_its_name_loads_it():
    assert [f"{name}.prune" for name in names()] == sorted(
        path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.prune")
    )
    assert dcil.load("dcil:methods/gmp") == dcil.load(RECIPES / "methods" / "gmp.prune")


def test_check_and_fmt_take_the_names_and_suggest_the_nearest(tmp_path, capsys):
    assert call("check", "dcil:methods/gmp") == 0
    assert call("fmt", "--check", "dcil:methods/gmp") == 0
    capsys.readouterr()
    assert call("check", "dcil:methods/gpm") == 2
    assert "did you mean `dcil:methods/gmp`?" in capsys.readouterr().err


def test_five_lines_are_a_recipe():
    recipe, parent = loads(SMALLEST), dcil.load("dcil:methods/dcil")
    assert recipe.rules[0].target.sparsity.fraction == 0.95
    assert recipe.train == parent.train.model_copy(update={"epochs": recipe.train.epochs})
    assert loads(recipe.text).updates == parent.updates


@pytest.mark.parametrize(
    "name", ["methods/nothing", "../README", "methods/../methods/gmp", "/etc/x", "", "methods/"]
)
def test_a_name_that_is_no_recipe_is_an_error_and_leads_nowhere(name):
    with pytest.raises(NoRecipe):
        file_of(f"dcil:{name}")
    with pytest.raises(dcil.InputError, match="no recipe of dcil"):
        dcil.load(f"dcil:{name}")
    with pytest.raises(dcil.RecipeError, match="E201"):
        loads(SMALLEST.replace("methods/dcil", name))


def test_the_nearest_name_is_said():
    with pytest.raises(dcil.InputError) as caught:
        dcil.load("dcil:methods/gmpp")
    assert "dcil:methods/gmp" in (caught.value.help or "")


def test_the_list_has_titles_and_what_was_measured():
    found = {one.name: one for one in shipped()}
    assert all(one.title for one in found.values())
    assert "98.9%" in found["dcil:quickstart"].evidence
    assert found["dcil:kinds/blocks"].of_folder and not found["dcil:quickstart"].of_folder


def test_the_wheel_takes_every_recipe_and_what_it_reads_along(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    along = set(runpy.run_path("grammar/build.py")["taken_along"]())
    assert {f"recipes/{name}.prune" for name in names()} <= along
    assert {"grammar/prune.lark", "recipes/README.md"} <= along
    assert "recipes/allocation/resnet20_table.json" in along
