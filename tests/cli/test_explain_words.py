"""`dcil explain` says of every name of the language what it is."""

from __future__ import annotations

import pytest

from dcil_dsl.cli.explain_word import explain_name, names
from dcil_dsl.lang.describe import PLACES, SETTINGS, help_of_word
from dcil_dsl.lang.statements import CLAUSES, STATEMENTS
from dcil_dsl.lang.syntax_errors import ITEMS, MIX_ITEMS
from dcil_dsl.lang.tokens import literals
from dcil_dsl.words.registry import own_words


def test_a_word_is_explained_by_its_docstring_and_its_settings(dcil):
    status, out, _ = dcil("explain", "cubic")
    assert status == 0
    assert out.startswith("cubic: a schedule\n\n    schedule = cubic(0ep..75% run)\n")
    assert "Zhu & Gupta" in out and "initial  a percentage, default 0%" in out


def test_a_name_with_two_meanings_is_explained_twice(dcil):
    out = dcil("explain", "gradient")[1]
    assert "gradient: a score" in out and "gradient: a way to grow" in out


def test_every_word_and_every_setting_of_the_language_can_be_explained():
    words = {word for table in own_words().values() for word in table}
    settings = {name for cls in SETTINGS.values() for name in cls.settings()}
    assert words | settings <= set(names())
    for name in names():
        assert explain_name(name).startswith(f"{name}: "), name


def test_every_keyword_of_the_grammar_is_a_statement_or_a_clause():
    keywords = {text for text in literals().values() if text.isalpha()}
    assert keywords == STATEMENTS.keys() | CLAUSES.keys()
    assert {literals()[name] for name in (*ITEMS, *MIX_ITEMS)} == STATEMENTS.keys()


def test_every_kind_of_word_says_where_it_is_written():
    assert own_words().keys() == PLACES.keys()


def test_no_type_or_default_is_shown_in_the_terms_of_python():
    shown = [
        one.facts
        for cls in [*SETTINGS.values(), *(c for t in own_words().values() for c in t.values())]
        for one in help_of_word(cls).settings
    ]
    assert not [text for text in shown if "None" in text or "Annotated" in text or "Time(" in text]


@pytest.mark.parametrize("name, near", [("cubik", "cubic"), ("refesh", "refresh"), ("E999", None)])
def test_an_unknown_name_is_a_wrong_command_with_the_nearest(dcil, name, near):
    status, out, err = dcil("explain", name)
    assert status == 2 and out == "" and name in err
    assert near is None or f"did you mean `{near}`?" in err


def test_explaining_a_word_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from dcil_dsl.cli.explain_word import explain_name\n"
        "explain_name('taylor'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
