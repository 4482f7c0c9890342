"""What the help of a diagnostic suggests, made as an edit, mends that diagnostic."""

from __future__ import annotations

from collections import Counter

import pytest
from support.literate import HERE, cases
from support.sound import completed

from dcil_dsl.diagnostics import Diagnostic, RecipeError, Source, Span
from dcil_dsl.diagnostics.suggest import replacements
from dcil_dsl.lang import loads

PAGES = [*cases("syntax.md"), *cases("recipe.md")]
# What follows `language 1` is judged only once it is there.
UNCOVERED = {"E108", "E109"}
# A rule that an edit makes readable may replace an earlier one.
REVEALED = Counter({("W303", "this rule has no effect"): 1})


def found_in(text: str) -> list[Diagnostic]:
    try:
        return list(loads(text, folder=HERE.parents[1] / "recipes").warnings)
    except RecipeError as error:
        return error.diagnostics


def counted(found: list[Diagnostic]) -> Counter[tuple[str, str]]:
    return Counter((one.code, one.message) for one in found)


@pytest.mark.parametrize("statements, drawing", PAGES)
def test_a_suggested_edit_mends_its_diagnostic_and_breaks_nothing_else(statements, drawing):
    text = completed(statements, whole=True)
    found = found_in(text)
    for diagnostic in found:
        for span, word in replacements(diagnostic):
            assert span.source.text == text
            mended = counted(found_in(text[: span.start] + word + text[span.stop :]))
            before = counted(found)
            key = diagnostic.code, diagnostic.message
            assert mended[key] < before[key], (text, span.text, word)
            new = mended - before - REVEALED
            assert diagnostic.code in UNCOVERED or not new, (span.text, new)


def test_the_pages_have_many_suggestions_that_are_edits():
    texts = [completed(case.values[0], whole=True) for case in PAGES]
    edits = [edit for text in texts for one in found_in(text) for edit in replacements(one)]
    assert len(edits) >= 50


@pytest.mark.parametrize(
    "text, marked, help, edited",
    [
        ("lr = 1,5", "5", "did you mean `1.5`?", "lr = 1.5"),
        ("for 3 epoks", "epoks", "did you mean `3 epochs`?", "for 3 epochs"),
        ('extends "a.prun"', '"a.prun"', "did you mean `a.prune`?", 'extends "a.prune"'),
        ('p = "bf16"', '"bf16"', "write `bf16` without quotes", "p = bf16"),
        ("taylor(spares)", "taylor(spares)", "did you mean `sparse`?", "taylor(sparse)"),
        ('prune "a.b"', '"a.b"', '`"a.c"` matches 2 layers', 'prune "a.c"'),
        ("Conv2", "Conv2", "did you mean `Conv2d`, of which the model has 9 layers?", "Conv2d"),
    ],
)
def test_the_edit_replaces_the_smallest_place_that_is_meant(text, marked, help, edited):
    start = text.rindex(marked)
    span = Span(Source(text), start, start + len(marked))
    ((at, new),) = replacements(Diagnostic("E101", "wrong", span, help=help))
    assert text[: at.start] + new + text[at.stop :] == edited


@pytest.mark.parametrize("help", ["for example `1ep`", "write `x(...)`", "no terminator", None])
def test_an_example_or_an_explanation_is_not_an_edit(help):
    span = Span(Source("abc"), 0, 3)
    assert replacements(Diagnostic("E101", "wrong", span, help=help)) == []


def test_several_alternatives_are_several_edits():
    span = Span(Source("3"), 0, 1)
    one = Diagnostic("E206", "wrong", span, help="did you mean `3ep` or `3 steps`?")
    assert [text for _, text in replacements(one)] == ["3ep", "3 steps"]
