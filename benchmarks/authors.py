"""A run of the authors' own experiment next to what they logged.

    python benchmarks/authors.py RUN

RUN is the folder of a run of resnet32_cifar10_dcil90 or resnet32_cifar10_dcil95 on dcil:resnet32,
with target and length unchanged. The program draws both curves of the deployed path and prints the
numbers at the same epochs. authors.csv has the mean and the deviation of the authors' three runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import Page, page_of, percent, table
from dcil_dsl.training.run import open_run

FILE = Path(__file__).with_name("authors.csv")
SOURCE = "summary/csv of github.com/Jangho-Kim/DCIL-pytorch"
REFERENCE, MODEL, DATA, NUM_EPOCHS, NUM_RUNS = "arXiv:2109.04660", "resnet32", "cifar10", 300, 3
TARGETS = {"resnet32_cifar10_dcil90": 0.90, "resnet32_cifar10_dcil95": 0.95}
AT = (1, 10, 70, 150, 225, 300)  # the KL terms begin after 70, the rate falls after 150 and 225
HEIGHT, WIDEST, MARGIN = 10, 72, 8


@dataclass(frozen=True)
class Compared:
    """top1 of the deployed path after `epoch` epochs, and the authors': mean and sample standard
    deviation of their three runs at the same epoch. Fractions."""

    epoch: int
    top1: float
    mean: float
    deviation: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="a run folder")
    asked = parser.parse_args(arguments)
    try:
        folder = open_run(asked.run)
        plan = folder.read_plan()
        if not logged(plan):
            print(f"{asked.run} is not a run of the authors' experiment", file=sys.stderr)
            return 1
        lines = show_authors(plan, folder.read_metrics(), page_of(sys.stdout))
    except InputError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    print("\n".join(lines or ["the run has no epoch yet"]))
    return 0


def logged(plan: Plan) -> dict[int, tuple[float, float]]:
    """What the authors logged of this experiment, {epoch: (mean, deviation)}, fractions.

    Empty where the plan is another one: by name, reference, model, data, target or length.
    """
    name = plan.recipe.name
    model = (plan.model.name or "").rpartition(":")[2]
    facts = (plan.recipe.reference, model, plan.data.name, plan.train.num_epochs)
    targets = tuple(group.sparsity for group in plan.groups)
    if facts != (REFERENCE, MODEL, DATA, NUM_EPOCHS) or targets != (TARGETS.get(name),):
        return {}
    rows = (line.split(",") for line in FILE.read_text(encoding="ascii").splitlines())
    return {int(row[1]): (float(row[2]), float(row[3])) for row in rows if row[0] == name}


def compare(plan: Plan, lines: Sequence[Mapping]) -> list[Compared]:
    """The run's epochs that the authors logged too; `lines` are those of metrics.jsonl."""
    theirs = logged(plan)
    if not theirs:
        return []
    by_epoch = {line["epoch"]: line.get("top1") for line in lines}
    ours = {
        epoch: top1[plan.deploy]
        for epoch, top1 in by_epoch.items()
        if isinstance(top1, dict) and isinstance(top1.get(plan.deploy), float)
    }
    return [
        Compared(epoch, ours[epoch], *theirs[epoch]) for epoch in sorted(theirs) if epoch in ours
    ]


def show_authors(plan: Plan, lines: Sequence[Mapping], page: Page) -> list[str]:
    """Both curves and the numbers; nothing where the run is not of the authors' experiment."""
    compared = compare(plan, lines)
    if not compared:
        return []
    ours = {c.epoch: c.top1 for c in compared}
    return [*_draw(logged(plan), ours, page), "", *_numbers(compared)]


def _draw(theirs: dict[int, tuple[float, float]], ours: dict[int, float], page: Page) -> list[str]:
    """
    92.9%|            ......*@@@
         |    ...*@@@@@@
    49.1%|*@@@
         +-----+-----+-----+----
         0     75    150   225    epoch
    """
    width = max(10, min(WIDEST, page.width - MARGIN - 10))
    last = [(i + 1) * NUM_EPOCHS // width for i in range(width)]
    curves = {".": [theirs[e][0] for e in last], "*": [ours.get(e) for e in last]}
    drawn = [value for curve in curves.values() for value in curve if value is not None]
    low, high = min(drawn), max(drawn)
    rows = [[" "] * width for _ in range(HEIGHT)]
    for mark, curve in curves.items():
        for column, value in enumerate(curve):
            if value is not None:
                row = rows[round((high - value) / max(high - low, 1e-9) * (HEIGHT - 1))]
                row[column] = "@" if row[column] == "." else mark
    labels = {0: percent(round(high, 3)), HEIGHT - 1: percent(round(low, 3))}
    head = f"top1 by epoch: * this run, . the authors (mean of {NUM_RUNS} runs), @ both"
    body = [f"{labels.get(i, ''):>{MARGIN - 2}} |{''.join(row)}" for i, row in enumerate(rows)]
    axis = _axis(width)
    return [head, *(line.rstrip() for line in body), *axis]


def _axis(width: int) -> Iterator[str]:
    places = {epoch * width // NUM_EPOCHS: str(epoch) for epoch in (0, 75, 150, 225)}
    rule = "".join("+" if i and i in places else "-" for i in range(width))
    yield " " * (MARGIN - 1) + "+" + rule
    line = ""
    for place, label in places.items():
        line = line.ljust(place) + label
    yield f"{'epoch':>{MARGIN - 2}}  {line}"


def _numbers(compared: list[Compared]) -> list[str]:
    """A row an epoch: where the schedule changes something, and the run's last."""
    chosen = [c for c in compared if c.epoch in AT or c is compared[-1]]
    rows = [
        (
            str(c.epoch),
            f"{c.top1:.2%}",
            f"{c.mean:.2%} +- {100 * c.deviation:.2f}",
            f"{100 * (c.top1 - c.mean):+.2f}",
        )
        for c in chosen
    ]
    header = ("epoch", "this run", f"the authors' {NUM_RUNS} runs", "difference")
    return [*table(header, rows, "rrrr"), f"the authors' numbers: {SOURCE}"]


if __name__ == "__main__":
    sys.exit(main())
