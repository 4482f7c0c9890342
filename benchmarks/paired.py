"""Differences between methods, paired by seed, with their 95% intervals.

    python benchmarks/paired.py benchmarks/results/clip.csv --against gmp

Two runs are a pair where method and settings alone differ: of one network, on the same images, to
the same sparsity, at the same cost (or with `--equal epochs` as long), of one seed. The interval is
Student's, of the mean of the differences; of one pair there is none. Each method's recipe is listed
by its hash, and runs of two hashes are two methods.

In:   a table of compare.py.
Out:  a table in Markdown: mean accuracy in percent (`--measure cross_entropy`: nats), the mean
      difference with its interval.
Not:  nothing is trained.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

LEVEL = 0.95
SETTING = ("network", "data", "split", "examples", "image_size", "start", "clients")


@dataclass(frozen=True, order=True)
class Arm:
    """Runs that differ in the seed alone. settings: the overrides that `common` does not have."""

    split: str
    target: float
    passes: float
    epochs: int
    method: str
    settings: str
    recipe: str
    setting: tuple[str, ...]

    @property
    def shown(self) -> str:
        return self.method + (f", {self.settings}" if self.settings else "")

    def is_comparable(self, other: Arm, equal: str = "passes") -> bool:
        """equal: "passes", so that both cost the same, or "epochs"."""
        own, others = (
            (arm.setting, arm.target, round(getattr(arm, equal))) for arm in (self, other)
        )
        return own == others


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--against", default="gmp", help='a method, or "gmp, setting=value"')
    parser.add_argument("--equal", choices=("passes", "epochs"), default="passes")
    parser.add_argument("--measure", default="top1", help="at the end of the run")
    parser.add_argument("--also", default="", help="measures by epoch to list")
    asked = parser.parse_args(arguments)
    arms = read_arms(asked.table, asked.measure)
    also = tuple(filter(None, asked.also.split(",")))
    print(markdown(asked.table, arms, asked.against, also, asked.equal, asked.measure))
    return 0


def read_arms(table: Path, measure: str = "top1") -> dict[Arm, dict[int, float]]:
    """{arm: {seed: the measure at the end}}."""
    arms: dict[Arm, dict[int, float]] = defaultdict(dict)
    for arm, row in read_rows(table, measure):
        if row["at"] == "end":
            arms[arm][int(row["seed"])] = float(row["value"])
    return dict(sorted(arms.items()))


def read_rows(table: Path, measure: str) -> list[tuple[Arm, dict[str, str]]]:
    """The rows of a measure, each with its arm."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    given = [set(filter(None, row["overrides"].split("; "))) for row in rows]
    common = set.intersection(*given) if given else set()
    found = []
    for row, own in zip(rows, given, strict=True):
        if row["measure"] == measure:
            parts = [part for part in row["overrides"].split("; ") if part in own - common]
            found.append((arm_of(row, ", ".join(parts)), row))
    return found


def arm_of(row: dict[str, str], settings: str) -> Arm:
    return Arm(
        row["split"],
        float(row["target"]),
        float(row["passes"]),
        int(row["epochs"]),
        row["method"],
        settings,
        row["recipe_sha256"][:8],
        tuple(row[name] for name in SETTING),
    )


def interval(values: list[float]) -> tuple[float, float | None]:
    """The mean of differences, and half of its 95% interval; None of a single one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None
    error = statistics.stdev(values) / len(values) ** 0.5
    return mean, float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * error


def markdown(
    table: Path,
    arms: dict[Arm, dict[int, float]],
    against: str,
    also: tuple[str, ...] = (),
    equal: str = "passes",
    measure: str = "top1",
) -> str:
    """also: measures by epoch, whose last value over the run is listed (`_max`: the largest)."""
    shown = in_percent if measure.startswith("top") else in_nats
    head = ["zeros", "cost", "method", "mean, seeds", f"minus {against}, pairs", *also, "recipe"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    more = {name: by_epoch(table, name) for name in also}
    for arm, values in arms.items():
        bases = [a for a in arms if a.shown == against and a.is_comparable(arm, equal)]
        seeds = sorted(set(values) & set(arms[bases[0]])) if bases and bases[0] != arm else []
        gap = difference([values[seed] - arms[bases[0]][seed] for seed in seeds], shown)
        mean = f"{shown(statistics.mean(values.values()))} ({len(values)})"
        beside = [f"{statistics.mean(x):.3g}" if (x := more[n].get(arm)) else "" for n in also]
        cells = (f"{arm.target:g} %", f"{arm.passes:g}", arm.shown, mean, gap, *beside, arm.recipe)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_epoch(table: Path, measure: str) -> dict[Arm, list[float]]:
    """For each arm one number a seed: the last of a measure, or the largest of one with `_max`."""
    runs: dict[tuple[Arm, str], dict[float, float]] = defaultdict(dict)
    for arm, row in read_rows(table, measure):
        at = float("inf") if row["at"] == "end" else float(row["at"])
        runs[arm, row["seed"]][at] = float(row["value"])
    found: dict[Arm, list[float]] = defaultdict(list)
    for (arm, _), values in runs.items():
        largest = max(values.values()) if measure.endswith("_max") else values[max(values)]
        found[arm].append(largest)
    return found


def runs_with(table: Path, measure: str) -> set[str]:
    """The keys of the runs that have a measure."""
    return {row["run"] for _, row in read_rows(table, measure)}


def in_percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f}"


def in_nats(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}"


def difference(values: list[float], shown: Callable[..., str] = in_percent) -> str:
    """The mean, half of its interval and the number: "+1.60 +- 0.89 (3)"."""
    if not values:
        return ""
    mean, half = interval(values)
    spread = "" if half is None else f" +- {shown(half)}"
    return f"{shown(mean, '+')}{spread} ({len(values)})"


if __name__ == "__main__":
    sys.exit(main())
