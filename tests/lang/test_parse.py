"""Texts to trees: the grammar has no conflict, each literal is one token, bytes are judged."""

from __future__ import annotations

import logging

import pytest
from lark import Lark, logger

from dcil_dsl.diagnostics import Diagnostics, InputError, RecipeError, Source
from dcil_dsl.lang import load, loads
from dcil_dsl.lang.fmt import format_text
from dcil_dsl.lang.tokens import grammar, grammar_text, lex, literals

TOKENS = {
    "90%": "PERCENT",
    "97.5%": "PERCENT",
    "5ep": "TIME",
    "5 epochs": "TIME",
    "1 epoch": "TIME",
    "16 steps": "TIME",
    "1 step": "TIME",
    "75% run": "TIME",
    "75%run": "TIME",
    "2:4": "RATIO",
    "1e-4": "NUMBER",
    "0.1": "NUMBER",
    "300": "NUMBER",
    '"a # b"': "STRING",
    're"layer[12].*"': "REGEX",
    "Conv2d": "TYPE",
    "prunes": "NAME",
    "re": "NAME",
    ">=": "COMPARE",
}


def codes(call, *arguments, **more) -> list[str]:
    with pytest.raises(RecipeError) as error:
        call(*arguments, **more)
    return [d.code for d in error.value.diagnostics]


def test_the_grammar_has_no_conflict(caplog):
    logger.setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG, logger=logger.name):
            Lark(grammar_text(), parser="lalr", lexer="basic", debug=True)
    finally:
        logger.setLevel(logging.CRITICAL)
    assert [r.getMessage() for r in caplog.records if "onflict" in r.getMessage()] == []


@pytest.mark.parametrize("text", TOKENS)
def test_each_literal_is_one_token(text):
    tokens, _ = lex(Source(text), Diagnostics())
    assert [(t.type, str(t)) for t in tokens] == [(TOKENS[text], text)]


def test_every_keyword_is_reserved():
    words = [word for word in literals().values() if word.isalpha()]
    assert len(words) == 31
    for word in words:
        assert [t.type for t in lex(Source(word), Diagnostics())[0]] == [word.upper()]


def test_the_parser_is_built_once():
    assert grammar() is grammar()


def test_a_text_without_statements_is_empty():
    assert codes(loads, "") == codes(loads, " \n# only a comment\n") == ["E111"]


def test_bytes_that_are_not_utf_8_are_located(tmp_path):
    path = tmp_path / "latin.prune"
    path.write_bytes(b"language 1\n# caf\xe9\n")
    with pytest.raises(RecipeError) as error:
        load(path)
    (only,) = error.value.diagnostics
    assert (only.code, only.span.line, only.span.column) == ("E110", 2, 6)


def test_a_nul_character_is_no_text():
    assert codes(loads, "language 1\n\0\0")[0] == "E110"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    path = tmp_path / "windows.prune"
    path.write_bytes(b"\xef\xbb\xbflanguage 1\r\nprune Conv2d 90%\r\n")
    with pytest.raises(RecipeError) as error:
        load(path)
    assert str(error.value.diagnostics[0].span) == f"{path}:2:14"


def test_a_missing_file_is_the_fault_of_the_command(tmp_path):
    (tmp_path / "resnet50.prune").write_text("language 1")
    with pytest.raises(InputError, match="no such file") as error:
        load(tmp_path / "resnet5.prune")
    assert error.value.help == "did you mean `resnet50.prune`?"
    with pytest.raises(InputError, match="directory"):
        load(tmp_path)


def test_deep_nesting_is_refused_before_it_is_walked():
    for deep in ("(" * 5000, "-" * 5000, "[" * 5000, "1 + " * 5000, "f(a=" * 5000):
        assert "E114" in codes(loads, "language 1 let x = " + deep)


def test_at_most_twenty_syntax_errors_are_gathered():
    assert len(codes(loads, "language 1\n" + "purne x\nkeep Conv2d\n" * 50)) == 20


def test_a_carriage_return_does_not_hide_a_rule_in_a_comment():
    """Old editors end lines with it alone, and show two lines where this is one comment."""
    assert codes(loads, "language 1\nkeep Conv2d # all\rkeep Linear\n")[0] == "E110"
    text = format_text("language 1\r\nkeep Conv2d # all\r\nkeep Linear # too\r\n# end\r\n")
    assert text.count("#") == 3 and "\r" not in text
