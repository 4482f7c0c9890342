"""The program that holds methods against each other: which runs it makes of what is asked."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import compare  # noqa: E402


def test_dense_training_runs_once_and_a_pattern_has_a_target_of_its_own():
    asked = compare.parser().parse_args(
        ["--methods", "dense,gmp,srste", "--targets", "95,98", "--seeds", "3", "--out", "x.csv"]
    )
    cells = [(cell.method, cell.target) for cell in compare.grid(asked)]
    assert cells == [("dense", 0.0), ("gmp", 95.0), ("srste", 50.0), ("gmp", 98.0)]


def test_methods_of_two_paths_have_half_the_epochs_at_the_same_cost():
    asked = compare.parser().parse_args(
        ["--methods", "gmp,dcil", "--targets", "95", "--seeds", "0", "--passes", "24",
         "--out", "x.csv"]
    )  # fmt: skip
    cells = [(cell.method, cell.epochs, cell.passes) for cell in compare.grid(asked)]
    assert cells == [("gmp", 24, 24.0), ("dcil", 12, 24.0)]
