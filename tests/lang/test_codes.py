"""Every code, its explanation and its examples."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from support.sound import completed

from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.diagnostics.codes import CODES, explain
from dcil_dsl.lang import loads

ROOT = Path(__file__).resolve().parents[2]
JUDGED = [c for c in CODES.values() if c.code[1] in "12"]  # the rest need a model
SOURCES = "\n".join(
    p.read_text() for p in (ROOT / "dcil_dsl").rglob("*.py") if not p.name.startswith("codes")
)


def codes_of(text: str) -> set[str]:
    try:
        return {d.code for d in loads(text, folder=ROOT / "recipes").warnings}
    except RecipeError as error:
        return {d.code for d in error.diagnostics}


@pytest.mark.parametrize("code", [c for c in JUDGED if c.wrong], ids=lambda c: c.code)
def test_the_wrong_example_gives_its_code(code):
    assert codes_of(completed(code.wrong, whole=True)) == {code.code}


@pytest.mark.parametrize("code", [c for c in JUDGED if c.right], ids=lambda c: c.code)
def test_the_right_example_gives_nothing(code):
    assert codes_of(completed(code.right)) == set()


@pytest.mark.parametrize("code", [c.code for c in JUDGED])
def test_every_code_of_the_language_is_used_by_the_program(code):
    assert f'"{code}"' in SOURCES


@pytest.mark.parametrize("code", sorted(set(re.findall(r'"([EW][1-4]\d\d)"', SOURCES))))
def test_every_code_of_the_program_is_explained(code):
    assert explain(code.lower()).startswith(f"{code}: ")


@pytest.mark.parametrize("code", sorted(CODES.keys() - {"E401", "E403"}))
def test_every_code_about_a_recipe_occurs_in_a_test_of_errors(code):
    texts = "".join(p.read_text() for p in (ROOT / "tests" / "errors").glob("*.md"))
    assert f"[{code}]" in texts


def test_an_unknown_code_is_the_fault_of_the_command():
    with pytest.raises(InputError, match="no diagnostic has the code E9"):
        explain("E9")


def test_an_error_keeps_its_diagnostics_when_it_crosses_processes():
    with pytest.raises(RecipeError) as caught:
        loads("language 1\nprune Conv2d to 300%\n")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.diagnostics == caught.value.diagnostics and str(again) == str(caught.value)
