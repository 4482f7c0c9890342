"""The table of epochs that grows while a run trains: a header, then one aligned row per epoch.

In:   a Plan, lines of metrics.jsonl, the width in columns.
Out:  rows of text with the best epoch so far marked. A column that does not fit is left out.
Not:  nothing is printed (progress.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.metrics import METRICS, metric_text

BEST = "*"


class EpochColumn(NamedTuple):
    """A column: its title, its width, how much it is wanted where room is short (0: always)."""

    title: str
    width: int
    wish: int


class EpochRows:
    """Lays out the rows of one run. best: the best value of the deployed path."""

    def __init__(self, plan: Plan, width: int):
        self.plan, self.width = plan, width
        self.best: float | None = None
        self.columns: list[EpochColumn] = []

    def see(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take earlier lines of the same run into account for the best."""
        for line in lines:
            self._is_best(line)

    def header(self, line: Mapping[str, Any]) -> str:
        """The header of rows like this line."""
        self.columns = columns_for(self.plan, line, self.width)
        return "  ".join(column.title.rjust(column.width) for column in self.columns)

    def row(self, line: Mapping[str, Any]) -> tuple[str, bool]:
        """One epoch, and whether it is the best so far."""
        best = self._is_best(line)
        cells = row_cells(self.plan, line, best)
        texts = (cells.get(column.title, "-").rjust(column.width) for column in self.columns)
        return "  ".join(texts), best

    def _is_best(self, line: Mapping[str, Any]) -> bool:
        metric = main_metric(line)
        value = line[metric].get(self.plan.deploy) if metric else None
        if value is None:
            return False
        sign = -1 if METRICS[metric].less_is_better else 1
        if self.best is None or sign * value > sign * self.best:
            self.best = value
            return True
        return False


def columns_for(plan: Plan, line: Mapping[str, Any], width: int) -> list[EpochColumn]:
    """The columns that fit, the most wanted ones first; in their usual order."""
    epochs = len(str(plan.train.num_epochs))
    metric = main_metric(line)
    paths = list(line[metric]) if metric else []
    size = sum(sum(group.num_weights) for group in plan.groups)
    possible = [
        EpochColumn("epoch", max(5, 2 * epochs + 1), 0),
        EpochColumn("lr", 8, 4),
        EpochColumn("loss", 7, 2),
        *(
            EpochColumn(_path_title(metric, path), max(9, len(_path_title(metric, path))), 1)
            for path in paths
        ),
        EpochColumn("sparsity", 8, 1),
        EpochColumn("flips", max(7, len(f"{size:,}")), 3),
        EpochColumn("examples/s", 10, 5),
        EpochColumn("time", 7, 6),
    ]
    if plan.train.balance is not None:  # its coefficients change, and no line holds the sum
        possible = [column for column in possible if column.title != "loss"]
    chosen: set[str] = set()
    room = width
    for column in sorted(possible, key=lambda column: column.wish):
        if column.wish == 0 or column.width + 2 <= room:
            chosen.add(column.title)
            room -= column.width + 2
    return [column for column in possible if column.title in chosen]


def row_cells(plan: Plan, line: Mapping[str, Any], best: bool) -> dict[str, str]:
    """The cells of one epoch by the titles of their columns."""
    metric = main_metric(line)
    cells = {
        "epoch": f"{line['epoch']}/{plan.train.num_epochs}",
        "lr": f"{line['lr']:.3g}" if "lr" in line else "-",
        "loss": f"{total_loss(plan, line):.4g}",
        "sparsity": f"{line['sparsity_measured']:.2%}",
        "flips": f"{line['mask_flips']:,}",
        "examples/s": f"{line['examples_per_second']:,.0f}",
        "time": f"{line['seconds']:.1f} s",
    }
    for path, value in line[metric].items() if metric else ():
        mark = (BEST if best else " ") if path == plan.deploy else ""
        cells[_path_title(metric, path)] = metric_text(metric, value, ".2%") + mark
    return cells


def total_loss(plan: Plan, line: Mapping[str, Any]) -> float:
    """The means of the terms over the epoch, times their coefficients, summed."""
    terms = line["losses"]
    found = [loss.coefficient * terms[loss.name] for loss in plan.losses if loss.name in terms]
    return sum(found) if found else float("nan")


def main_metric(line: Mapping[str, Any]) -> str:
    """The first metric of the run; "" where no line has one that is known."""
    return next((name for name in METRICS if isinstance(line.get(name), Mapping)), "")


def _path_title(metric: str, path: str) -> str:
    """ "sparse" for a share, which people know as the accuracy; else "sparse mse"."""
    return path if METRICS[metric].is_share else f"{path} {metric}"
