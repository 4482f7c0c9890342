"""A table of runs: `dcil runs`, and the end of a sweep.

In:   a folder, or RunRecords.
Out:  the records that can be read, sorted; why others cannot; a table as text.
Not:  no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.report.read import RunRecord, find_runs, read_run
from dcil_dsl.plan.text import Page, named_table, percent, shorten
from dcil_dsl.words.metrics import metric_text

# Left out of a narrow page, the first one first.
LEAST = ("recipe", "data", "cost", "model", "seed")
HEADER = ("run", "recipe", "model", "data", "seed", "sparsity", "result", "cost", "state")


def list_runs(folder: Path) -> tuple[list[RunRecord], list[InputError]]:
    """The runs below a folder, the best first, and the errors of those that cannot be read."""
    records, faults = [], []
    for path in find_runs(folder):
        try:
            records.append(read_run(path))
        except InputError as error:
            faults.append(error)
    return sorted(records, key=lambda record: record.rank), faults


def list_row(run: RunRecord) -> tuple[str, ...]:
    """One run: a cell for each of HEADER."""
    result, metric = run.result, run.metrics[0] if run.metrics else ""
    return (
        run.name,
        run.plan.recipe.name,
        shorten((run.plan.model.name or "-").rpartition("/")[2], 24),
        run.plan.data.name or "-",
        str(run.plan.train.seed),
        percent(round(result["sparsity_measured"], 4)) if result else "-",
        "-" if run.score is None else f"{metric} {metric_text(metric, run.score, '.2%')}",
        f"{result['cost']:.2f}" if result else "-",
        run.state,
    )


def show_list(runs: Sequence[RunRecord], page: Page) -> str:
    """The table; a name that is too long stands on a line of its own. Columns that do not fit
    are left out."""
    if not runs:
        return "no runs\n"
    rows = [list_row(run) for run in runs]
    shown = list(range(len(HEADER)))
    for name in ("", *LEAST):
        shown = [i for i in shown if HEADER[i] != name]
        header = tuple(HEADER[i] for i in shown)
        cells = [tuple(row[i] for i in shown) for row in rows]
        blocks = named_table(header, cells, "".join("llllrrrrl"[i] for i in shown), 30, page)
        lines = [line for block in blocks for line in block]
        if max(map(len, lines)) <= page.width:
            break
    return "".join(f"{line}\n" for line in lines)
