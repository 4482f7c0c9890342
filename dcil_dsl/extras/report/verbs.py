"""The verbs `dcil report`, `dcil runs` and `dcil compare`.

In:   run folders.
Out:  a page in a file; tables on stdout.
Not:  `runs` and its table need no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli.errors import note
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import say_loading, verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.report.read import RunRecord, read_run

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders")]


@verb
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the page to write")] = Path(
        "report.html"
    ),
) -> None:
    """Write one self-contained page about a run; of several, what differs comes first."""
    found = read_runs(runs)
    say_loading()
    write_page(found, out)
    print(out)


@verb
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="where to look for run folders")
    ] = Path("runs"),
) -> None:
    """List the runs in a folder and below, the best first."""
    from dcil_dsl.extras.report.listing import list_runs, show_list
    from dcil_dsl.plan.text import page_of

    records, faults = list_runs(folder)
    for fault in faults:
        note(f"left out: {fault.message}")
    show(show_list(records, page_of(sys.stdout)))


@verb
def compare(runs: Runs) -> None:
    """Print what differs between runs: results, recipes, plans, layers."""
    if len(runs) < 2:
        raise InputError("to compare takes two or more run folders")
    records = read_runs(runs)
    from dcil_dsl.extras.report.differences import show_differences
    from dcil_dsl.plan.text import page_of

    show(show_differences(records, page_of(sys.stdout)))


def read_runs(names: Sequence[str]) -> list[RunRecord]:
    """The records, of several each named below the folder that they share.

    InputError where one is named twice.
    """
    real = [os.path.realpath(name) for name in names]
    twice = [name for name, path in zip(names, real, strict=True) if real.count(path) > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice")
    records = [read_run(name) for name in names]
    if len(records) > 1:  # the folder that all are in says nothing about one of them
        paths = [record.path.absolute() for record in records]
        parent = os.path.commonpath([path.parent for path in paths])
        for record, path in zip(records, paths, strict=True):
            record.name = os.path.relpath(path, parent)
    return records


def write_page(records: Sequence[RunRecord], out: Path) -> None:
    """Read the tensors, verify the files, and write the page."""
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder", help="name a file in it")
    from dcil_dsl.extras.report.page import make_page
    from dcil_dsl.extras.report.weights import MOST_BITMAPS, read_weights
    from dcil_dsl.training.files import write_text

    most = max(1, MOST_BITMAPS // len(records))
    stored = [read_weights(record, most) for record in records]
    write_text(out, make_page(records, stored, [proof_of(record) for record in records]))


def proof_of(record: RunRecord) -> str:
    """A sentence on what verifying the exported file found now."""
    exported = record.path / "sparse.safetensors"
    if not exported.is_file():
        return "There is no exported file to verify."
    from dcil_dsl.jobs.inspect import verify_artefact

    try:
        ((_, verdict),) = verify_artefact(exported)
    except InputError as error:
        return f"The exported file could not be verified: {error.message}."
    if verdict.holds:
        return (
            "Verified: the zeros of the exported file were counted, and its tensors are those that "
            "were written."
        )
    faults: Optional[str] = "; ".join(verdict.faults)
    return f"NOT VERIFIED ({count(len(verdict.faults), 'fault')}): {faults}."
