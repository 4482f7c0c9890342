"""The errors in these pages are the errors of the program: codes, lines, and some in full."""

from __future__ import annotations

import pytest
from support.literate import HERE, cases, told
from support.sound import completed

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.diagnostics.render import render
from dcil_dsl.lang import loads


def found_in(text: str):
    try:
        return list(loads(text, folder=HERE.parents[1] / "recipes").warnings)
    except RecipeError as error:
        return error.diagnostics


@pytest.mark.parametrize("statements, drawing", [*cases("syntax.md"), *cases("recipe.md")])
def test_a_page_of_errors_tells_the_truth(statements, drawing):
    text = completed(statements, whole=True)
    found = found_in(text)
    assert sorted((d.span.line, d.code) for d in found) == told(text)
    if drawing is not None:
        assert "\n".join(render(d) for d in found) + "\n" == drawing
