"""The program that holds methods against each other: which runs it makes of what is asked."""

import csv
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import compare


def test_dense_training_runs_once_and_a_pattern_has_a_target_of_its_own():
    asked = compare.parser().parse_args(
        ["--methods", "dense,gmp,srste", "--targets", "95,98", "--seeds", "3", "--out", "x.csv"]
    )
    cells = [(cell.method, cell.target) for cell in compare.grid(asked)]
    assert cells == [("dense", 0.0), ("gmp", 95.0), ("srste", 50.0), ("gmp", 98.0)]


def test_methods_of_two_paths_have_half_the_epochs_at_the_same_cost():
    asked = compare.parser().parse_args(
        [
            "--methods",
            "gmp,dcil",
            "--targets",
            "95",
            "--seeds",
            "0",
            "--passes",
            "24",
            "--out",
            "x.csv",
        ]
    )
    cells = [(cell.method, cell.epochs, cell.passes) for cell in compare.grid(asked)]
    assert cells == [("gmp", 24, 24.0), ("dcil", 12, 24.0)]


def test_a_run_begins_with_the_weights_of_another_that_had_none_of_its_rate():
    asked = compare.parser().parse_args(
        [
            "--methods",
            "gmp",
            "--targets",
            "95",
            "--seeds",
            "2",
            "--epochs",
            "6",
            "--start",
            "dense:12",
            "--set",
            "data.batch_size=64",
            "--set",
            "train.ema=0.9",
            "--out",
            "x.csv",
        ]
    )
    (cell,) = compare.grid(asked)
    start = compare.start_of(asked, cell)
    assert (start.method, start.epochs, start.seed) == ("dense", 12, 2)
    assert (cell.overrides, start.overrides) == (
        "data.batch_size=64; train.ema=0.9",
        "data.batch_size=64",
    )
    assert compare.start_of(asked, start) is None


def test_the_runs_of_the_published_table_keep_their_keys():
    """A key that changed would have the whole table run again."""
    with open(compare.ROOT / "benchmarks" / "results" / "methods.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    kinds = {"target": float, "cost": float, "passes": float} | dict.fromkeys(
        ("seed", "examples", "image_size", "epochs", "clients"), int
    )
    names = [field.name for field in fields(compare.Cell)]
    for key, row in rows.items():
        assert compare.Cell(**{n: kinds.get(n, str)(row[n]) for n in names}).key == key
    assert rows


def test_each_figure_says_what_it_shows_and_of_which_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import figures

    table = compare.ROOT / "benchmarks" / "results" / "methods.csv"
    shown = {}

    def save(figure, setting, what, stem):
        shown[stem.rpartition("-1-")[2]] = what
        assert setting.told(what).startswith("dcil:resnet20, fashion-mnist, 6,000 images of 14 px")
        figures.plt.close(figure)

    monkeypatch.setattr(figures, "save", save)
    figures.main([str(table), "--out", str(tmp_path), "--methods", "dense,gmp,dcil"])
    assert shown == {
        "sparsity": "test accuracy of the last epoch",
        "cost": "test accuracy of the last epoch",
        "top1": "test accuracy by epoch, runs of 12 epochs",
        "mask_flips": "weights that changed side by epoch, runs of 12 epochs",
        "layers": "the share of its weights that each layer keeps",
    }


def test_a_start_comes_first_and_rounds_of_clients_have_their_rows(tmp_path):
    table = tmp_path / "table.csv"
    common = [
        "--data",
        "digits",
        "--image-size",
        "8",
        "--examples",
        "150",
        "--targets",
        "80",
        "--seeds",
        "0",
        "--out",
        str(table),
        "--runs",
        str(tmp_path / "runs"),
        "--set",
        "data.batch_size=32",
    ]
    started = ["--methods", "gmp", "--start", "dense:1", "--epochs", "1"]
    rounds = ["--methods", "feddip_rounds", "--clients", "2", "--epochs", "2", "--set", "ramp=1ep"]
    assert compare.main([*common, *started, "--set", "train.ema=0.5"]) == 0
    assert compare.main([*common, *rounds]) == 0
    with open(table, newline="") as file:
        end = ("top1", "end")
        rows = [row for row in csv.DictReader(file) if (row["measure"], row["at"]) == end]
    assert [(row["method"], row["start"], row["clients"], row["overrides"]) for row in rows] == [
        ("dense", "", "0", "data.batch_size=32"),
        ("gmp", "dense:1", "0", "data.batch_size=32; train.ema=0.5"),
        ("feddip_rounds", "", "2", "data.batch_size=32; ramp=1ep"),
    ]
    (run,) = (tmp_path / "runs").glob("gmp-*")
    (start,) = (tmp_path / "runs").glob("dense-*")
    told = json.loads((run / "command.json").read_text())
    assert told["weights"] == str(start / "sparse.safetensors")


def pieces_of_text(monkeypatch, number):
    """A data set of `number` numbered pieces, as `open_dataset` gives one."""
    import torch
    from torch.utils.data import TensorDataset

    import dcil_dsl.data
    from dcil_dsl.data import Dataset

    train, val = (TensorDataset(torch.arange(a, a + number)) for a in (0, 1000))
    whole = Dataset("text", train, val, task="language-modelling")
    monkeypatch.setattr(dcil_dsl.data, "open_dataset", lambda name, place: whole)


@pytest.mark.parametrize("examples", [(), ("--examples", "30")])
def test_a_text_holds_out_its_last_pieces_and_no_run_trains_on_them(monkeypatch, examples):
    pieces_of_text(monkeypatch, 100)
    given = ["--recipes", str(compare.ROOT / "recipes" / "methods_text"), *examples]
    given += ["--network", "hf:LlamaForCausalLM", "--data", "language-modelling"]
    asked = compare.parser().parse_args([*given, "--out", "x.csv"])
    fields_of = dict(data="language-modelling", examples=30 if examples else 0)
    cell = compare.Cell(
        "gmp",
        80.0,
        0,
        "n",
        split="test",
        image_size=0,
        epochs=1,
        cost=1.0,
        passes=1.0,
        overrides="",
        recipe_sha256="f" * 16,
        **fields_of,
    )
    for split, measured in (("test", range(1000, 1100)), ("validation", range(80, 100))):
        parts = compare.open_split(asked, replace(cell, split=split))
        trained = [int(item[0]) for item in parts.train]
        assert trained == list(range(30 if examples else 80))
        assert [int(item[0]) for item in parts.val] == list(measured)
