"""What a training run leaves on the terminal: its tables, its claims, how to resume it.

In:   a Run.
Out:  text on stdout and stderr, an exit status.
Not:  nothing is computed or written.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcil_dsl.cli.errors import DONE, STOPPED, WRONG, note
from dcil_dsl.words.metrics import metric_text

if TYPE_CHECKING:
    from dcil_dsl.jobs.expect import Claim
    from dcil_dsl.jobs.train import Run
    from dcil_dsl.training.options import RunOptions


def report_run(run: Run, options: RunOptions) -> int:
    """Print the result; the exit status."""
    if not run.is_first:
        return STOPPED if run.interrupted else DONE
    if run.interrupted:
        again = shlex.join(_resuming(sys.argv, None if options.out is not None else run.path))
        where = f"step {run.result.step:,} of {run.plan.num_steps:,}"
        note(f"interrupted at {where}; continue with\n  {again}")
        return STOPPED
    if not options.quiet:
        _show_tables(run)
    show_claims(run.claims)
    return DONE if run.holds else WRONG


def show_claims(claims: Iterable[Claim]) -> None:
    """A line for each expectation of the recipe, with the measured value."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "not judged, the run is cut short"}
    for claim in claims:
        measured = metric_text(claim.metric, claim.measured)
        print(f"expect {claim.text}: measured {measured}, {words[claim.holds]}")


def _show_tables(run: Run) -> None:
    from rich.console import Console

    from dcil_dsl.training.checkpoint_files import newest_of
    from dcil_dsl.training.result import result_table

    checkpoint = newest_of(run.folder.checkpoint) or run.folder.checkpoint
    files = (run.folder.weights, run.folder.report, run.folder.metrics, checkpoint)
    Console().print(result_table(run.result, run.plan, files))


def _resuming(argv: Sequence[str], folder: Path | None) -> list[str]:
    """The command that resumes a run: the words typed, --resume, and the folder where missing."""
    program = Path(argv[0]).name
    words = ["python", "-m", "dcil_dsl"] if program == "__main__.py" else [program]
    if (local_processes := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > 1:
        words = ["torchrun", "--nproc-per-node", str(local_processes), "-m", "dcil_dsl"]
    words += [word for word in argv[1:] if word not in ("--resume", "--resume-anyway")]
    return words + ([] if folder is None else ["--out", str(folder)]) + ["--resume"]
