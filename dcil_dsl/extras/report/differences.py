"""What differs between runs: results, recipes, plans, layers. For `dcil compare` and the page.

In:   two or more RunRecords; the first is the one that the others are compared with.
Out:  tables of text.
Not:  nothing is drawn, and nothing is read from the disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.extras.report.read import RunRecord
from dcil_dsl.lang.changes import recipe_changes
from dcil_dsl.plan.text import Page, fit, percent, shorten, table
from dcil_dsl.training.differences import science_of, text_differences, value_differences
from dcil_dsl.words.metrics import metric_text

MOST_LAYERS, MOST_LINES = 10, 40
NOTHING = "-"
Rows = list[tuple[str, ...]]


def result_rows(runs: Sequence[RunRecord]) -> Rows:
    """A row for each number of the results: its name, then its value in each run."""
    rows: Rows = [("state", *(run.state for run in runs))]
    for metric in dict.fromkeys(name for run in runs for name in run.metrics):
        paths = dict.fromkeys(
            path
            for run in runs
            for path, values in run.result.get("accuracies", {}).items()
            if metric in values
        )
        for path in paths:
            values = (run.result.get("accuracies", {}).get(path, {}).get(metric) for run in runs)
            texts = (NOTHING if v is None else metric_text(metric, v, ".2%") for v in values)
            rows.append((f"{metric} of {path}", *texts))
        starts = [run.start.get("metrics", {}).get(metric) for run in runs]
        if any(value is not None for value in starts):
            texts = (NOTHING if v is None else metric_text(metric, v, ".2%") for v in starts)
            rows.append((f"{metric} before training", *texts))
    shares = {"sparsity asked": "sparsity_asked", "sparsity measured": "sparsity_measured"}
    for title, key in shares.items():
        texts = (_share(run.result.get(key)) for run in runs)
        rows.append((title, *texts))
    rows.append(("steps", *(f"{run.result.get('step', 0):,}" for run in runs)))
    costs = (run.result.get("cost") for run in runs)
    rows.append(("cost in dense runs", *(NOTHING if c is None else f"{c:.2f}" for c in costs)))
    rows.append(("model", *(run.plan.model.name or NOTHING for run in runs)))
    rows.append(("data", *(run.plan.data.name or NOTHING for run in runs)))
    rows.append(("seed", *(str(run.plan.train.seed) for run in runs)))
    for key in ("torch", "dcil_dsl"):
        rows.append((key, *(run.report.get("versions", {}).get(key, NOTHING) for run in runs)))
    return rows


def recipe_lines(one: str, other: str) -> list[str]:
    """What differs between two resolved recipes, by the name of the setting.

    By line where one of them is not a recipe of this version.
    """
    try:
        return recipe_changes(one, other)
    except RecipeError:
        return text_differences(one, other)


def plan_lines(one: RunRecord, other: RunRecord) -> list[str]:
    """Where the plans would train differently, by the name of the setting."""
    return value_differences(
        science_of(one.plan), science_of(other.plan), f"in {one.name}", f"in {other.name}"
    )


def densities(run: RunRecord) -> dict[str, float]:
    """The share of nonzero weights of each layer of the exported network."""
    layers = run.report.get("weights", {}).get("layers", [])
    return {
        layer["parameter"]: layer["num_nonzero"] / max(1, layer["num_weights"]) for layer in layers
    }


def layer_rows(runs: Sequence[RunRecord]) -> Rows:
    """The layers whose density differs most between the runs, the largest difference first."""
    by_run = [densities(run) for run in runs]
    spread: dict[str, float] = {}
    for name in dict.fromkeys(name for found in by_run for name in found):
        values = [found[name] for found in by_run if name in found]
        if len(values) > 1 and max(values) > min(values):
            spread[name] = max(values) - min(values)
    names = sorted(spread, key=lambda name: -spread[name])[:MOST_LAYERS]
    return [(name, *(_share(found.get(name)) for found in by_run)) for name in names]


def show_differences(runs: Sequence[RunRecord], page: Page) -> str:
    """All of it as text."""
    width = max(8, (page.width - 26) // len(runs) - 2)
    header = ("", *(shorten(run.name, width) for run in runs))
    right = "l" + "r" * len(runs)
    lines = table(header, _narrow(result_rows(runs), width), right)
    for other in runs[1:]:
        pair = f"{runs[0].name} and {other.name}"
        for title, found in (
            ("recipes", recipe_lines(runs[0].resolved, other.resolved)),
            ("plans", plan_lines(runs[0], other)),
        ):
            if not found:
                lines += ["", fit(f"The {title} of {pair} do not differ.", page.width)]
                continue
            lines += ["", fit(f"The {title} of {pair} differ:", page.width)]
            lines += [fit(f"  {line}", page.width) for line in found[:MOST_LINES]]
            if len(found) > MOST_LINES:
                lines.append(f"  and {len(found) - MOST_LINES} more")
    if rows := layer_rows(runs):
        lines += ["", "Weights that are not zero, in the layers that differ most:"]
        lines += table(header, [(shorten(row[0], 26), *row[1:]) for row in rows], right)
    return "\n".join(lines) + "\n"


def _narrow(rows: Rows, width: int) -> Rows:
    return [(row[0], *(shorten(cell, width) for cell in row[1:])) for row in rows]


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(round(value, 4))
