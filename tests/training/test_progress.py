"""What is shown of a run."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.training.epoch_rows import EpochRows
from dcil_dsl.training.progress import make_display
from dcil_dsl.training.result import Result, result_table
from dcil_dsl.training.sparsity import RuleSparsity


def shown(tmp_path, terminal: bool, quiet: bool = False, width: int = 160) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    tiny_train(tmp_path / "run", display=make_display(quiet, console), max_steps=10)
    return console.file.getvalue()


def line(epoch: int, top1: float) -> dict:
    return {
        "epoch": epoch,
        "step": 5 * epoch,
        "lr": 0.05,
        "top1": {"sparse": top1, "dense": 0.5},
        "losses": {"cross_entropy(sparse)": 1.25, "cross_entropy(dense)": 0.5},
        "sparsity_measured": 0.9,
        "mask_flips": 1234,
        "seconds": 2.5,
        "examples_per_second": 1566.4,
    }


def test_without_a_terminal_there_is_a_header_and_an_aligned_row_an_epoch(tmp_path):
    lines = shown(tmp_path, terminal=False).splitlines()
    assert lines[0].split() == ("epoch lr loss sparse dense sparsity flips examples/s time".split())
    assert [line.split()[0] for line in lines[1:]] == ["1/4", "2/4"]
    assert "79.01%" in lines[2] and "\x1b" not in lines[2]
    assert len(set(map(len, lines))) == 1 and len(lines[0]) <= 100


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_row_fits_the_terminal_and_shows_each_path_and_the_sparsity(width):
    rows = EpochRows(tiny_plan(), width)
    header, (row, _) = rows.header(line(1, 0.75)), rows.row(line(1, 0.75))
    assert len(header) == len(row) <= width
    assert {"epoch", "loss", "sparse", "dense", "sparsity"} <= set(header.split())
    for value in ("1/4", "1.75", "75.00%*", "50.00%", "90.00%"):
        assert value in row
    assert ("examples/s" in header) == (width > 60)


def test_the_best_epoch_of_the_deployed_path_is_marked_also_after_a_resume():
    rows = EpochRows(tiny_plan(), 100)
    rows.see([line(1, 0.8)])
    rows.header(line(2, 0.7))
    marked = [rows.row(line(epoch, top1))[1] for epoch, top1 in ((2, 0.7), (3, 0.9), (4, 0.9))]
    assert marked == [False, True, False]


def test_of_a_loss_the_smallest_is_the_best():
    rows = EpochRows(tiny_plan(), 100)
    lines = [line(n, 0) for n in (1, 2, 3)]
    for one, value in zip(lines, (3.0, 2.0, 4.0)):
        del one["top1"]
        one["mse"] = {"sparse": value, "dense": 1.0}
    assert "sparse mse" in rows.header(lines[0])
    assert [rows.row(one)[1] for one in lines] == [True, True, False]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_bar_keeps_its_count_and_its_labelled_time_at_every_width(tmp_path, width):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(tmp_path, terminal=True, width=width))
    bars = [part for part in re.split(r"[\r\n]", text) if "ETA" in part]
    assert bars and any("10/10" in bar for bar in bars)
    for bar in bars:
        assert re.search(r"\d/10 ETA ", bar) and "epoch " in bar and len(bar) <= width


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
