"""No recipe of a few lines, of one long word or of a strange parent makes its reader wait."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.sound import completed

from dcil_dsl.diagnostics import Diagnostic, InputError, RecipeError, Source, Span
from dcil_dsl.diagnostics.render import render_all, render_concise
from dcil_dsl.lang import load, loads

CHILD = 'language 1\nextends "{}"\n'


def told(text: str, **more) -> list:
    try:
        return list(loads(text, **more).warnings)
    except RecipeError as error:
        return error.diagnostics


def doubled(form: str, number: int) -> str:
    lets = [f"let a{i + 1} = {form.replace('A', f'a{i}')}" for i in range(number)]
    return "let a0 = 1ep\n" + "\n".join(lets) + "\n"


@pytest.mark.parametrize("form", ["[A, A]", "f(A, A)", "A..A", "[A, A, A]"])
@pytest.mark.parametrize("used", ["prune Conv2d to 90% { refresh = a24 }", ""])
def test_values_that_double_with_each_let_are_an_error_with_a_place(form, used):
    (error,) = (d for d in told(completed(doubled(form, 24) + used)) if d.is_error)
    assert error.code == "E114" and "brings too many values" in error.message
    assert error.span.text.startswith("a")


def test_a_list_that_names_a_list_a_thousand_times_is_no_error():
    text = "let a = [1ep, 2ep]\n" + "prune Conv2d to 90% { refresh = a }\n" * 1000
    assert [d for d in told(completed(text)) if d.is_error] == []


@pytest.mark.parametrize("form, number", [("[A]", 70), ("[[[[[[[[[[A]]]]]]]]]]", 8), ("f(A)", 80)])
def test_values_that_nest_through_lets_are_an_error_and_no_recursion(form, number):
    text = completed(doubled(form, number) + f"prune Conv2d to 90% {{ refresh = a{number} }}")
    assert [d.code for d in told(text) if d.is_error] == ["E114"]


def test_selectors_that_nest_through_names_are_an_error_and_no_recursion():
    layers = "\n".join(f"layers a{i + 1} = first a{i}" for i in range(300))
    text = completed(f"layers a0 = Conv2d\n{layers}\nprune a300 to 90%")
    assert [d.code for d in told(text) if d.is_error] == ["E114"]


def test_a_long_set_that_names_bring_again_and_again_is_an_error():
    long, more = ", ".join(['"x"'] * 1000), ", ".join(["a"] * 100)
    text = f"layers a = {long}\nlayers b = {more}\nlayers c = {more.replace('a', 'b')}\nkeep c"
    assert [d.code for d in told(completed(text)) if d.is_error] == ["E114"]


def test_whole_numbers_do_not_grow_without_end():
    lets = "let a0 = 1000000000\n" + "\n".join(f"let a{i + 1} = a{i} * a{i}" for i in range(40))
    assert [d.code for d in told(completed(f"{lets}\nmodel x {{ k = a40 }}")) if d.is_error] == [
        "E228"
    ]


LONG = {
    "a word and a dot": lambda n: f"prune Conv2d to {'a' * n} . 90%",
    "a name of layers": lambda n: f"prune {'a' * n} to 90%",
    "an unknown setting": lambda n: f"pruning {{ {'a' * n} = 1 }}",
    "an unknown word": lambda n: f"prune Conv2d to 90% {{ schedule = {'a' * n}() }}",
    "an unknown let": lambda n: f"let b = {'a' * n} + 1\nprune Conv2d to b",
    "an unused let": lambda n: f"let {'a' * n} = 1",
    "an unknown metric": lambda n: f"expect {{ {'a' * n} >= 1% }}",
    "a number": lambda n: f"let a = {'9' * n}",
    "spaces in a time": lambda n: f"let a = 1{' ' * n}x",
    "an open text": lambda n: f'prune "{"a" * n} to 90%',
    "other quotes": lambda n: f"prune '{'a' * n}' to 90%",
    "strange letters": lambda n: "\u00e9" * n,
    "a dotted name": lambda n: "prune " + "a." * n + " to 90%",
    "quotes": lambda n: "'" * n,
    "colons": lambda n: ":" * n,
    "an open bracket": lambda n: "train { f = ( " + "a = " * (n // 4) + "}",
    "errors on one line": lambda n: "train { " + "a = " * (n // 4) + "}",
    "undefined lets": lambda n: "".join(f"let z{i} = y{i} + 1\n" for i in range(n // 40)),
    "unused lets": lambda n: "".join(f"let z{i} = 1\n" for i in range(n // 20)),
    "unused sets": lambda n: "".join(f"layers z{i} = Conv2d\n" for i in range(n // 20)),
    "undefined sets": lambda n: "".join(f"keep z{i}\n" for i in range(n // 20)),
    "settings given twice": lambda n: "pruning { " + "floor = 1% " * (n // 20) + "}",
    "unknown settings": lambda n: (
        "pruning { " + "".join(f"zz{i} = 1 " for i in range(n // 20)) + "}"
    ),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_text_four_times_as_long_takes_no_more_than_about_four_times_the_calls(kind):
    def calls(length: int) -> int:
        count = 0

        def profile(frame, event, argument):
            nonlocal count
            count += event.endswith("call")  # of functions of Python and of C

        text = completed(LONG[kind](length))
        sys.setprofile(profile)
        try:
            found = told(text)
            drawn = render_all(found)
        finally:
            sys.setprofile(None)
        assert len(drawn) < 30_000 and all(len(d.message) <= 1000 for d in found)
        assert all(len(render_concise(d)) < 3000 for d in found)
        return count

    told(completed(""))  # the parser is built
    short, long = calls(5_000), calls(20_000)
    assert long < 5 * short + 20_000


def test_a_parent_that_is_no_regular_file_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.prune")
    with open(tmp_path / "sparse.prune", "wb") as file:
        file.truncate(20 << 30)
    (tmp_path / "folder.prune").mkdir()
    (tmp_path / "bytes.prune").write_bytes(b"language 1 \xff\n")
    expected = {
        "pipe.prune": ("E201", "it is a pipe or a device, not a regular file"),
        "sparse.prune": ("E201", "it is larger than 2 MB"),
        "folder.prune": ("E201", "is a directory"),
        "/dev/zero": ("E201", "it is a pipe or a device, not a regular file"),
        "a" * 200_000: ("E201", "file name too long"),
        "bytes.prune": ("E110", "not UTF-8 text"),
    }
    for name, (code, words) in expected.items():
        (error,) = told(CHILD.format(name), folder=tmp_path)
        assert error.code == code and len(render_all([error])) < 3000
        assert words in render_concise(error) or len(name) > 1000, error


def test_of_a_foreign_file_at_most_three_lines_are_quoted(tmp_path):
    lines = [f"user{i}:x:{i}:secret{i}:/home/user{i}" for i in range(40)]
    (tmp_path / "passwd").write_text("\n".join(lines))
    found = told(CHILD.format("passwd"), folder=tmp_path)
    drawn = render_all(found)
    assert sum(line in drawn for line in lines) <= 3
    assert (found[-1].code, found[-1].span.text) == ("E201", '"passwd"')
    assert "is not a recipe: at least" in found[-1].message


def test_a_recipe_that_a_command_names_may_be_a_pipe_and_ends_at_its_limit():
    receive, send = os.pipe()
    os.write(send, completed("prune Conv2d to 90%").encode())
    os.close(send)
    assert load(Path(f"/dev/fd/{receive}")).rules
    os.close(receive)
    with pytest.raises(InputError, match="larger than 2 MB"):
        load("/dev/zero")


def test_a_message_is_cut_and_a_diagnostic_without_a_label_is_drawn():
    source = Source("language 1\n")
    found = Diagnostic("E101", "a" * 5000, Span(source, 0, 1), label=None, help="b c " * 5000)
    assert len(found.message) == 200 and len(found.help) == 1000
    assert render_all([found]).startswith("<recipe>:1:1: error[E101]: aaa")
