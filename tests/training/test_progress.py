"""What is shown of a run."""

from __future__ import annotations

import io

from rich.console import Console
from tiny_run import tiny_plan, tiny_train

from dcil_dsl.training import make_display, result_table


def shown(tmp_path, terminal: bool, quiet: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    tiny_train(tmp_path / "run", display=make_display(quiet, console), max_steps=10)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_an_epoch(tmp_path):
    lines = shown(tmp_path, terminal=False).splitlines()
    assert [line[:10] for line in lines] == ["epoch 1/4 ", "epoch 2/4 "]
    assert "sparsity 79.01%" in lines[1] and "\x1b" not in lines[1]


def test_on_a_terminal_there_is_a_bar_with_both_paths(tmp_path):
    text = shown(tmp_path, terminal=True)
    assert "\x1b[" in text and "10/10" in text
    assert "sparse " in text and "dense " in text


def test_quiet_shows_nothing(tmp_path):
    assert shown(tmp_path, terminal=True, quiet=True) == ""


def test_the_table_says_what_came_out_and_where_it_lies(tmp_path):
    result, _, run = tiny_train(tmp_path / "run")
    console = Console(file=io.StringIO(), width=200)
    console.print(result_table(result, tiny_plan(), [run.weights]))
    text = console.file.getvalue()
    for words in ("sparse path (deployed)", "80.00%", "80.25%", "64 of 324", "2.00 x a dense run"):
        assert words in text
    assert str(run.path) in text and f" {run.weights.name} " in text


def test_no_file_name_is_cut_in_a_narrow_table(tmp_path):
    result, _, run = tiny_train(tmp_path / "run")
    console = Console(file=io.StringIO(), width=60)
    console.print(result_table(result, tiny_plan(), [run.weights, run.checkpoint]))
    text = console.file.getvalue()
    assert " sparse.safetensors " in text and " checkpoint/last.safetensors " in text
