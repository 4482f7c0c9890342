"""The errors in these pages are the errors of the program: codes, lines, and some in full."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lang"))

from sound import completed  # noqa: E402

from dcil_dsl.diagnostics import RecipeError  # noqa: E402
from dcil_dsl.diagnostics.render import render  # noqa: E402
from dcil_dsl.lang import loads  # noqa: E402

MARK = re.compile(r"(?:error|warning): \[([EW]\d\d\d)\]")


def cases(page: str):
    """(recipe, drawing or None) for each block of a page; a drawing follows its block."""
    text = (HERE / page).read_text()
    for match in re.finditer(r"```prune\n(.*?)```", text, re.DOTALL):
        rest = text[match.end() :]
        drawing = re.match(r"(?:(?!```).)*?```(\w+)\n(.*?)```", rest, re.DOTALL)
        drawn = drawing[2] if drawing and drawing[1] == "text" else None
        name = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        yield pytest.param(match[1], drawn, id=name)


def found_in(text: str):
    try:
        return list(loads(text, folder=HERE.parents[1] / "recipes").warnings)
    except RecipeError as error:
        return error.diagnostics


def told(text: str) -> list[tuple[int, str]]:
    """(line, code) of every mark in a recipe."""
    return sorted(
        (line, code) for line, row in enumerate(text.splitlines(), 1) for code in MARK.findall(row)
    )


@pytest.mark.parametrize("statements, drawing", [*cases("syntax.md"), *cases("recipe.md")])
def test_a_page_of_errors_tells_the_truth(statements, drawing):
    text = completed(statements, whole=True)
    found = found_in(text)
    assert sorted((d.span.line, d.code) for d in found) == told(text)
    if drawing is not None:
        assert "\n".join(render(d) for d in found) + "\n" == drawing
