"""How a diagnostic is drawn."""

from __future__ import annotations

import pytest

from dcil_dsl.diagnostics import Diagnostic, Label, Source, Span
from dcil_dsl.diagnostics.counting import count, none_of
from dcil_dsl.diagnostics.render import WIDTH, render, render_all, render_concise
from dcil_dsl.diagnostics.suggest import nearest


def place(text: str, part: str) -> Span:
    start = text.index(part)
    return Span(Source(text, "x.prune"), start, start + len(part))


def drawn(text: str, part: str, **more) -> list[str]:
    return render(Diagnostic("E999", "a fact", place(text, part), **more)).splitlines()


def test_the_first_line_is_place_code_and_fact():
    assert drawn("one two", "two")[0] == "x.prune:1:5: error[E999]: a fact"
    assert render(Diagnostic("W999", "a fact")) == "warning[W999]: a fact"


def test_what_is_counted_is_one_or_many():
    assert (count(1, "step"), count(0, "step"), count(5005, "step")) == (
        "1 step",
        "0 steps",
        "5,005 steps",
    )
    assert (count(1, "class", "classes"), count(2, "class", "classes")) == ("1 class", "2 classes")
    assert (none_of(1, "layer"), none_of(7, "layer")) == (
        "not even the one layer",
        "none of the 7 layers",
    )


def test_the_caret_stands_under_the_place():
    assert drawn("one two three", "two", label="here") == [
        "x.prune:1:5: error[E999]: a fact",
        "  |",
        "1 | one two three",
        "  |     ^^^ here",
    ]


def test_tabs_and_wide_characters_keep_the_caret_in_place():
    lines = drawn("\t\u4e2d two", "two")
    assert lines[2].index("two") + 1 == lines[3].index("^^^")  # the wide one takes two columns


def test_a_place_over_several_lines_is_marked_to_the_end_of_the_first():
    lines = drawn("mix {\n  deploy x\n}", "mix {\n  deploy x\n}")
    assert lines[2:] == ["1 | mix {", "  | ^^^^^"]


def test_the_end_of_a_text_has_a_caret():
    assert drawn("abc", "")[3] == "  | ^"
    text = "abc\n"
    end = Diagnostic("E999", "a fact", Span(Source(text), len(text), len(text)))
    assert render(end).splitlines()[-1] == "  | ^"


def test_a_very_long_line_is_clipped_around_the_caret():
    lines = drawn("x" * 5000 + " here " + "y" * 5000, "here")
    assert len(lines[2]) < WIDTH + 20
    assert lines[2][lines[3].index("^") :].startswith("here ")


def test_second_places_are_drawn_in_the_order_of_the_text():
    text = "mix {\n\n\n\ntrain {"
    lines = drawn(text, "train", others=(Label(place(text, "{"), "opened here"),), help="close it")
    assert lines[1:] == [
        "  |",
        "1 | mix {",
        "  |     - opened here",
        "...",
        "5 | train {",
        "  | ^^^^^",
        "  |",
        "help: close it",
    ]


def test_a_place_in_another_file_names_that_file():
    other = Span(Source("let a = 1", "parent.prune"), 4, 5)
    lines = drawn("one two", "two", others=(Label(other, "given here"),))
    assert "  --> parent.prune:1:5" in lines


def test_concise_is_one_line_whatever_the_names_hold():
    span = Span(Source("a", "odd\nname"), 0, 1)
    assert render_concise(Diagnostic("E999", "a\rfact", span, help="b\nc")).isprintable()


def test_control_characters_never_reach_the_terminal():
    assert "\x1b" not in render(Diagnostic("E999", "\x1b[2J", place("\x1b[2J bad", "bad")))


def test_color_changes_no_character():
    diagnostic = Diagnostic("E999", "a fact", place("one two", "two"), help="do")
    plain = render(diagnostic, color=True)
    for code in ("[1;31m", "[1;34m", "[1;36m", "[1m", "[0m"):
        plain = plain.replace("\x1b" + code, "")
    assert plain == render(diagnostic)


def test_beyond_twenty_only_the_count_is_said():
    many = [Diagnostic("E999", f"fact {i}") for i in range(23)]
    assert render_all(many, concise=True).splitlines()[-1] == "and 3 more"


@pytest.mark.parametrize(
    "word, near",
    [
        ("momentun", "momentum"),
        ("teh", "the"),
        ("Conv2D", "Conv2d"),
        ("xyz", None),
        ("l2", None),
        ("mom", "momentum"),
        ("momentums_of_sgd", "momentum"),
        ("mo", None),
    ],
)
def test_a_suggestion_is_near_or_none(word, near):
    assert nearest(word, ["momentum", "the", "Conv2d", "lr"]) == near
