"""No text, however broken, ends in anything but a RecipeError that can be drawn."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.diagnostics.codes import CODES
from dcil_dsl.diagnostics.render import render, render_concise
from dcil_dsl.lang import loads
from dcil_dsl.lang.tokens import decode

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = [path.read_text() for path in sorted(FOLDER.glob("*.prune"))]
WORDS = re.compile(r'"[^"\n]*"|#[^\n]*|[A-Za-z_0-9.]+%?|\s+|.', re.DOTALL)
STRANGE = [
    '"',
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    "=",
    "..",
    "-",
    "*",
    "/ 0",
    "90%",
    "5ep",
    "3 epoks",
    "2:4",
    "1e999",
    "9" * 30,
    "none",
    "true",
    "train",
    "mix",
    "let",
    "from",
    "until",
    "by",
    "in",
    "where x == 1",
    "except",
    "first 0",
    're"["',
    "sparse",
    "kl(",
    "cubic",
    "magnitude",
    "a",
    "Z",
    "\0",
    "\t",
    "\r",
    "\u00e9",
    "\u4e2d",
    "\U0001f600",
    "'",
    ":",
    ";",
    "extends",
    "#",
    "\ufeff",
]
QUICK = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def mutated(draw) -> str:
    """A real recipe after a few slips: pieces deleted, doubled, swapped or replaced."""
    pieces = WORDS.findall(draw(st.sampled_from(RECIPES)))
    for _ in range(draw(st.integers(1, 6))):
        if not pieces:
            break
        place = draw(st.integers(0, len(pieces) - 1))
        other = draw(st.integers(0, len(pieces) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                del pieces[place : place + draw(st.integers(1, 30))]
            case 1:
                pieces.insert(other, pieces[place])
            case 2:
                pieces[place], pieces[other] = pieces[other], pieces[place]
            case 3:
                pieces[place] = draw(st.sampled_from(STRANGE))
            case 4:
                pieces[place] = pieces[place][:-1]
            case 5:
                pieces.insert(place, draw(st.characters()))
    return "".join(pieces)


def judge(text: str, **more) -> None:
    """Load a text; what is found must have a known code, a place in its text, and be drawable.

    What loads is said again by its closed text.
    """
    try:
        recipe = loads(text, folder=FOLDER, **more)
        found = recipe.warnings
        assert loads(recipe.text) == recipe
    except RecipeError as error:
        found = error.diagnostics
        assert found
    for diagnostic in found:
        span = diagnostic.span
        assert diagnostic.code in CODES
        assert 0 <= span.start <= span.stop <= len(span.source.text)
        assert "\n" not in diagnostic.message and "\n" not in render_concise(diagnostic)
        assert diagnostic.code in render(diagnostic) and "\x1b" not in render(diagnostic)


@settings(QUICK, max_examples=150)
@given(mutated())
def test_a_mutated_recipe_loads_or_says_what_is_wrong(text):
    judge(text)


@settings(QUICK, max_examples=60)
@given(st.lists(st.sampled_from([*STRANGE, *WORDS.findall(RECIPES[0])]), max_size=60))
def test_words_in_any_order_load_or_say_what_is_wrong(words):
    judge("language 1\n" + " ".join(words))


@settings(QUICK, max_examples=60)
@given(st.binary(max_size=200))
def test_random_bytes_say_what_is_wrong(content):
    try:
        text = decode(content, "bytes.prune")
    except RecipeError as error:
        assert [d.code for d in error.diagnostics] == ["E110"]
        return
    judge(text)


@settings(QUICK, max_examples=60)
@given(st.text(max_size=20), st.text(max_size=20) | st.sampled_from(STRANGE))
def test_any_override_is_taken_or_refused(name, value):
    judge(RECIPES[0], overrides={name: value, "target": value, "train.epochs": value})
