"""The verb `dcil sweep`.

In:   a recipe, a model, data, the values to try, the options of every run.
Out:  a table on stdout; results.csv and report.html in the folder of the sweep; 1 if a run failed.
Not:  no training in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import DONE, WRONG, note
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.report.sweep import (
    INTERRUPTED,
    Outcome,
    open_sweep,
    read_lists,
    read_records,
    request_of,
    results_csv,
    run_all,
    runs_of,
    show_sweep,
)
from dcil_dsl.training.options import RunOptions, flags

OWN = ("out", "overrides", "seed", "quiet")  # options that the sweep gives each run itself
NOT_HERE = ("resume", "anyway")


@verb
def sweep(
    recipe: o.RecipeFile,
    model: o.Spec,
    train: Annotated[str, typer.Option("--train", metavar="DATA", help="the data")],
    *,
    vary: Annotated[
        Optional[list[str]],
        typer.Option("--vary", metavar="NAME=A,B", help="values of a `let` or a setting to try"),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="seeds 0 to N-1")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="runs at a time")] = 1,
    options: RunOptions,
) -> int:
    """Train a recipe at several values and seeds; the same command again resumes.

    A failed run does not end the others. --out names the folder (default: runs/RECIPE-sweep).
    """
    given = [name for name in (*NOT_HERE, "seed") if name in options.given()]
    if given:
        names = ", ".join(flags()[name].name for name in given)
        raise InputError(f"{names}: not for a sweep, which resumes and counts the seeds itself")
    lists = read_lists(vary or [])
    if both := [name for name in lists if name in options.overrides]:
        raise InputError(f"`{both[0]}` is given by --vary and by --set")
    runs = runs_of(lists, range(seeds))
    folder = Path(options.out or Path("runs") / f"{Path(recipe).stem}-sweep")
    command = [recipe, "--model", model, "--train", train, *_passed_on(options)]
    open_sweep(folder, request_of(recipe, model, train, {"given": " ".join(command[1:])}))
    note(f"{count(len(runs), 'run')} in {folder}")
    outcomes = run_all(runs, folder, command, jobs, _tell)
    records = read_records(outcomes, folder)
    from dcil_dsl.extras.report.verbs import write_page
    from dcil_dsl.plan.text import page_of
    from dcil_dsl.training.files import write_text

    write_text(folder / "results.csv", results_csv(outcomes, records))
    found = [record for record in records if record is not None]
    if found:
        write_page(found, folder / "report.html")
    show(show_sweep(outcomes, records, page_of(sys.stdout)))
    print(folder / "results.csv", *([folder / "report.html"] if found else []), sep="\n")
    if any(one.status == INTERRUPTED for one in outcomes):
        return INTERRUPTED
    return WRONG if any(one.status for one in outcomes) else DONE


def _passed_on(options: RunOptions) -> list[str]:
    """The options that every run gets, as the command line spells them."""
    words = []
    for name in options.given():
        if name in OWN:
            continue
        value = getattr(options, name)
        words += (
            [flags()[name].name] if isinstance(value, bool) else [flags()[name].name, str(value)]
        )
    for name, text in options.overrides.items():
        words += ["--set", f"{name}={text}"]
    return words


def _tell(outcome: Outcome) -> None:
    if outcome.reused:
        note(f"{outcome.run.name}: has finished before")
    elif outcome.status == INTERRUPTED:
        note(f"{outcome.run.name}: interrupted; the same command resumes the sweep")
    elif outcome.status:
        note(f"{outcome.run.name}: FAILED with status {outcome.status}: {outcome.reason}")
    else:
        note(f"{outcome.run.name}: done")
