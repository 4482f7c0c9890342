"""The experiments behind docs/results.md, each one command that continues where it stopped.

    python benchmarks/evidence.py clip --dir DIR [--jobs 2]      # stability at 98% zeros
    python benchmarks/evidence.py rules --dir DIR                # rules and tuned GMP, held out
    python benchmarks/evidence.py routing --dir DIR              # who learns from whom, 12 seeds
    python benchmarks/evidence.py clip --table                   # what is there, nothing is run

Each is a list of grids of compare.py, run in the order of the list into
benchmarks/results/NAME.csv, with seeds outermost: a table that was cut short has whole pairs. At
the end the paired differences are printed (paired.py).

In:   the four files of Fashion-MNIST.
Out:  rows of the tables; paired differences.
Not:  no recipe is written here, and none is chosen by test images: `rules` and `routing` measure
      on the 5,000 training images that are held out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import compare
import paired
from workloads import ROOT

RESULTS = ROOT / "benchmarks" / "results"
COMMON = ["--image-size", "14", "--examples", "6000", "--set", "data.batch_size=64"]
COMMON += ["--evaluate-every", "4"]


def grid(methods: str, targets: str, length: str, seeds: str, *settings: str) -> list[str]:
    """The arguments of compare.py; length as "epochs 12" or "passes 24"."""
    kind, number = length.split()
    own = ["--methods", methods, "--targets", targets, "--seeds", seeds, f"--{kind}", number]
    return own + [part for setting in settings for part in ("--set", setting)]


CLIPPED = "gmp,st3_rule,dpf_rule"
CLIP = [
    grid(CLIPPED, "98", "epochs 12", "0,1,2", "train.clip=3"),
    grid(CLIPPED, "98", "epochs 24", "0,1,2", "train.clip=3"),
]
EXPERIMENTS = {"clip": CLIP}
AGAINST = {"clip": "gmp"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("--dir", type=Path, help="where the data lie")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    asked = parser.parse_args(arguments)
    table, status = RESULTS / f"{asked.name}.csv", 0
    for cells in [] if asked.table else EXPERIMENTS[asked.name]:
        where = ["--out", str(table), "--runs", str(asked.runs), "--jobs", str(asked.jobs)]
        where += [] if asked.dir is None else ["--dir", str(asked.dir)]
        status = status or compare.main([*cells, *COMMON, *where])
    print(paired.markdown(paired.read_arms(table), AGAINST[asked.name]))
    return status


if __name__ == "__main__":
    sys.exit(main())
