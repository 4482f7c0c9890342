"""What is shown of a run."""

from __future__ import annotations

import io

from rich.console import Console
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.training.metrics import RuleSparsity
from dcil_dsl.training.progress import line_text, make_display
from dcil_dsl.training.result import Result, result_table


def shown(tmp_path, terminal: bool, quiet: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    tiny_train(tmp_path / "run", display=make_display(quiet, console), max_steps=10)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_an_epoch(tmp_path):
    lines = shown(tmp_path, terminal=False).splitlines()
    assert [line[:10] for line in lines[::2]] == ["epoch 1/4 ", "epoch 2/4 "]
    assert "sparsity 79.01%" in lines[2] and "\x1b" not in lines[2]
    assert lines[3].startswith("  ce(sparse) ")  # four losses do not fit beside it
    assert max(map(len, lines)) <= 100


def test_losses_that_fit_stand_in_the_line_of_their_epoch():
    line = {
        "epoch": 2,
        "step": 46,
        "top1": {"dense": 0.5},
        "losses": {"cross_entropy(dense)": 1.25},
        "sparsity_measured": 0.9,
        "mask_flips": 1234,
        "seconds": 2.5,
        "examples_per_second": 566.4,
    }
    assert line_text(line, tiny_plan()) == (
        "epoch 2/4  step 46  dense 50.00%  sparsity 90.00%  flips 1,234  2.5 s  566/s  "
        "ce(dense) 1.250"
    )


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


def test_of_several_rules_each_has_a_row_with_its_own_unit():
    rules = (
        RuleSparsity("a/x.prune:3", "filters", 0.4, 16, 9),
        RuleSparsity("a/x.prune:4", "weights", 0.5, 200, 100),
    )
    result = Result(
        4, 1, {}, 0.49, 0.5, 109, 218, 1.0, 1.0, 1.0, counts="filters and weights", rules=rules
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(result_table(result, tiny_plan()))
    text = " ".join(console.file.getvalue().replace("\u2502", "|").split())
    assert "rule x.prune:3 | 40.00% of filters asked, 43.75% measured |" in text
    assert "rule x.prune:4 | 50.00% of weights asked, 50.00% measured |" in text
    assert "sparsity measured | 50.00% of weights |" in text and "filters and" not in text


def test_no_file_name_is_cut_in_a_narrow_table(tmp_path):
    result, _, run = tiny_train(tmp_path / "run")
    console = Console(file=io.StringIO(), width=60)
    console.print(result_table(result, tiny_plan(), [run.weights, run.checkpoint]))
    text = console.file.getvalue()
    assert " sparse.safetensors " in text and " checkpoint/last.safetensors " in text
