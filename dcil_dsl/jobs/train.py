"""The main job: a recipe, a model and data become a trained sparse network in a run folder.

In:   a recipe, a model, data and RunOptions, as `dcil compile RECIPE --train DATA` takes them.
Out:  Run: the run folder, whose exported file was read back and proved.
Not:  no step of training (training/). Nothing is written before the data, the recipe and the
      model have proved usable (open_job.py).
"""

from __future__ import annotations

import io
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from dcil_dsl.data.contents import contents_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.html import preformatted
from dcil_dsl.diagnostics.optional import require_training
from dcil_dsl.jobs.data import Data
from dcil_dsl.jobs.expect import Claim
from dcil_dsl.jobs.finish import finish_run
from dcil_dsl.jobs.open_job import Job, open_job, options_here
from dcil_dsl.jobs.prepare import Note, Warn, no_note, no_warning, warn_in_python
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.trace import text_of
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import check_alike
from dcil_dsl.training.distributed import joined_ranks
from dcil_dsl.training.files import write_text
from dcil_dsl.training.options import RunOptions, options_of
from dcil_dsl.training.process import hold_run, require_locks
from dcil_dsl.training.progress import Display, make_display
from dcil_dsl.training.result import Result, result_table
from dcil_dsl.training.run import (
    COMMAND,
    RunFolder,
    command_text,
    create_run,
    open_run,
    read_command,
    refuse_out,
    resume_run,
)
from dcil_dsl.training.trainer import train as train_dual
from dcil_dsl.words.metrics import metric_text
from dcil_dsl.words.registry import extra


@dataclass(frozen=True)
class Run:
    """The result of the job. model is the deployed network.

    model is None and claims are empty where training was interrupted, and on every process of a
    job but the first.
    """

    folder: RunFolder
    plan: Plan
    result: Result
    claims: tuple[Claim, ...] = ()
    model: nn.Module | None = None
    is_first: bool = True  # whether this process of the job is the one that reports

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def interrupted(self) -> bool:
        return self.result.interrupted

    @property
    def holds(self) -> bool:
        """Whether no expectation of the recipe was missed."""
        return all(claim.holds is not False for claim in self.claims)

    def __repr__(self) -> str:
        numbers = [
            f"{path} {name} {metric_text(name, value, '.2%')}"
            for path, values in self.result.accuracies.items()
            for name, value in [*values.items()][:1]
        ]
        numbers.append(f"{self.result.sparsity_measured:.2%} zeros")
        state = f"step {self.result.step:,} of {self.plan.num_steps:,}"
        return f"<Run {self.path}: {', '.join(numbers)}, {state}>"

    def _repr_html_(self) -> str:
        """The result table, for a notebook."""
        return preformatted(self._table_text())

    def show(self) -> None:
        """Print the result table."""
        print(self._table_text(), end="")

    def _table_text(self) -> str:
        text = io.StringIO()
        files = (self.folder.weights, self.folder.report)
        # Else rich shows it in a notebook's cell and leaves the text empty, or writes colours.
        console = Console(file=text, width=100, force_jupyter=False, force_terminal=False)
        console.print(result_table(self.result, self.plan, files))
        return text.getvalue()


def train(
    recipe: str | Path | Recipe,
    model: str | nn.Module,
    data: Data,
    options: RunOptions | None = None,
    *,
    warn: Warn | None = None,
    note: Note | None = None,
    display: Display | None = None,
    **fields: Any,
) -> Run:
    """Compile, train, evaluate, export and prove.

    recipe   a path, or a Recipe of dcil.load
    model    a SPEC ("torchvision:resnet18") or a module, which is not changed
    data     a name ("digits"), "my.py:make", a Dataset, or a pair of a training and a held-out part
    options  how to run it; each field of RunOptions is a keyword too, which replaces it
    warn     called with each warning about the recipe; default: a Python RecipeWarning
    note     called with each line that is not a warning; default: dropped
    display  shows the progress; default: by `quiet`

    Raises RecipeError, InputError, and SparsityError where the network is less sparse than the
    recipe asks; TypeError for a keyword that does not exist.
    """
    require_training("training")
    require_locks("training")
    given = options_of(options, fields)
    if given.track is not None:
        extra("tracking.session").require(given.track)
    shown = display or make_display(given.quiet)
    with joined_ranks() as ranks, ExitStack() as held:
        if not ranks.is_first:  # the first process reports for all
            warn, note, given = no_warning, no_note, replace(given, quiet=True)
            shown = make_display(given.quiet)
        here = options_here(given, ranks)
        if ranks.count == 1 and not here.resume:  # of several, `check_alike` speaks first
            refuse_out(here.out)  # before minutes of opening the data and the model
        job = open_job(recipe, model, data, here, warn or warn_in_python, note or no_note)
        model_text = text_of(job.prepared.traced)
        check_alike(
            job.plan, job.options, model_text, contents_of(job.batches.dataset, sizes=False)
        )
        folder = _open_folder(job, model_text, held, note or no_note)
        if given.track is not None and ranks.is_first:
            tell = note or partial(warnings.warn, category=RuntimeWarning)
            tracked = extra("tracking.session").tracked
            shown = held.enter_context(tracked(given.track, folder, job.plan, shown, tell))
        result = _train(job, folder, shown)
        if result.interrupted or not ranks.is_first:
            return Run(folder, job.plan, result, is_first=ranks.is_first)
        claims, deployed = finish_run(job, folder, result)
        return Run(folder, job.plan, result, claims, deployed)


def _open_folder(job: Job, model_text: str, held: ExitStack, note: Note) -> RunFolder:
    """The run folder, made or resumed by the first process, which locks it until `held` closes."""
    work = partial(_created, job, model_text, held)
    if job.options.resume:
        work = partial(_resumed, job, model_text, held, note)
    folder = RunFolder(Path(job.options.ranks.from_first(work)))
    if job.batches.bad_images is not None:
        job.batches.bad_images.keep_in(folder.bad_images)
    return folder


def _resumed(job: Job, model_text: str, held: ExitStack, note: Note) -> str:
    out = job.options.out
    assert out is not None  # options_here refuses --resume without it
    held.enter_context(hold_run(open_run(out).path))  # before anything in it is replaced
    folder = resume_run(
        out,
        job.plan,
        job.recipe.given,
        job.recipe.text,
        model=model_text,
        data=contents_of(job.batches.dataset),
        anyway=job.options.anyway,
    )
    then, now = read_command(folder).get("threads"), _threads(job)
    if then is not None and now is not None and then != str(now):
        note(
            f"the number of torch's threads was {then} when the run was started, and is {now} now: "
            "the last bits of the result may differ from those without the break"
        )
    if job.options.anyway:  # the folder has taken this recipe
        folder.parent.unlink(missing_ok=True)
        for name, text in _parent_file(job).items():
            write_text(folder.path / name, text)
    return str(folder.path)


def _created(job: Job, model_text: str, held: ExitStack) -> str:
    try:
        folder = create_run(
            job.plan,
            job.recipe.given,
            job.recipe.text,
            job.options.out,
            model=model_text,
            data=contents_of(job.batches.dataset),
            extra_files={COMMAND: command_text(job.plan, job.options, _threads(job))}
            | _parent_file(job),
        )
    except InputError:
        job.options.ranks.refuse()
        raise
    held.enter_context(hold_run(folder.path))
    return str(folder.path)


def _threads(job: Job) -> int | None:
    """The threads whose number decides the last bits of a sum; None where the CPU does not sum."""
    return torch.get_num_threads() if torch.device(job.options.device).type == "cpu" else None


def _parent_file(job: Job) -> dict[str, str]:
    """The recipe that the job's extends, closed; for a report of what differs."""
    text = job.recipe.parent
    return {RunFolder(Path()).parent.name: text} if text else {}


def _train(job: Job, folder: RunFolder, display: Display) -> Result:
    train_loader, val_loader = job.batches.loaders
    is_fresh = job.prepared.is_fresh
    try:
        return train_dual(
            job.dual, train_loader, val_loader, folder, job.options, display, is_fresh
        )
    finally:
        train_loader.close()
        val_loader.close()
