"""The reports of a run: the lines of epochs, their files, the Result.

In:   a Session, the accuracies of its paths.
Out:  lines in metrics.jsonl, in TensorBoard's events and on the display, of the first rank alone;
      a Result, and its table as text.
Not:  nothing is evaluated (evaluate.py), and the display draws itself (progress.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from dcil_dsl.diagnostics.optional import library
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.average import deploy_average
from dcil_dsl.training.events import write_events, write_settings
from dcil_dsl.training.files import cannot_write
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder
from dcil_dsl.training.session import Session, check_deferred, show_notes
from dcil_dsl.training.sparsity import RuleSparsity, check_sparsity, masks_step
from dcil_dsl.training.watch import is_over, rate_share
from dcil_dsl.words.metrics import metric_text

if TYPE_CHECKING:
    from torch.utils import tensorboard
else:
    tensorboard = library("torch.utils.tensorboard")

BY_THRESHOLD = "no share: a threshold decides"


@dataclass(frozen=True)
class Result:
    """The result of a run.

    accuracies         {path: {metric: value}}, the metrics of the task; empty if interrupted
    sparsity_asked     the requested sparsity at `step`, a fraction of what the budgets count
    sparsity_measured  of the weights under rules
    sparsity_counted   of what the budgets count: to compare with the requested one
    counts             what that is: "weights", "filters" ...
    at_floor           layers of shared budgets with nothing above their floor; at_ceiling: with
                       all that their ceiling allows
    rules              the same of each rule alone, in its own unit
    num_kept           of the num_weights under rules
    seconds            of the whole run, evaluation and what was before a resume included
    cost               passes over the model, as a multiple of a dense run of as many steps; 2:4
                       patterns are counted as this machine computed them in the end
    data_seconds       in which steps waited for their batch; data_share: of all seconds of steps.
                       As the host sees it: where the device lags behind it, the device waited less
    patterns       in words, where 2:4 patterns were computed and why; empty where none asks for it
    ended          whether the run took all its steps, or was ended by the recipe's `stop`
    rewinds        how often the run went back after a loss that was not finite: at which step
                   what, and to which step
    """

    step: int
    epoch: int
    accuracies: dict[str, dict[str, float]]
    sparsity_asked: float
    sparsity_measured: float
    num_kept: int
    num_weights: int
    seconds: float
    examples_per_second: float
    cost: float
    data_seconds: float = 0.0
    data_share: float = 0.0
    interrupted: bool = False
    sparsity_counted: float = 0.0
    counts: str = "weights"
    at_floor: tuple[str, ...] = ()
    at_ceiling: tuple[str, ...] = ()
    rewinds: tuple[dict[str, int | str], ...] = ()
    rules: tuple[RuleSparsity, ...] = ()
    patterns: tuple[str, ...] = ()
    ended: bool = False


def epoch_line(now: Session, accuracies: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The line of metrics.jsonl for the epoch, or for the part of it that was trained."""
    check_deferred(now)
    show_notes(now)
    plan, state, at = now.plan, now.state, now.state.position
    sums = now.options.ranks.sum(state.sums)
    sparsity = check_sparsity(now.dual, masks_step(at.step))
    paths = [path.name for path in plan.paths]
    names = [loss.name for loss in plan.losses] + paths
    means = {
        name: total / at.examples_by[name]
        for name, total in zip(names, sums.tolist(), strict=True)
        if name in at.examples_by
    }
    changes, density = _mask_changes(now)
    return {
        "step": at.step,
        "epoch": at.epoch + 1,
        "lr": plan.lr_at(max(at.step - 1, 0)) * rate_share(plan, at),
        "losses": {name: value for name, value in means.items() if name not in paths},
        f"train_{now.task.trained}": {n: value for n, value in means.items() if n in paths},
        **{
            metric: {path: a[metric] for path, a in accuracies.items() if metric in a}
            for metric in now.task.metrics
        },
        "sparsity_asked": sparsity.asked,
        "sparsity_measured": sparsity.measured,
        "sparsity_counted": sparsity.pruned,
        "at_floor": list(sparsity.at_floor),
        "at_ceiling": list(sparsity.at_ceiling),
        "mask_flips": changes[0],
        "mask_revived": changes[1],
        "density": density,
        "rewinds": len(at.rewinds),
        "seconds": at.epoch_trained,
        "examples_per_second": at.examples / max(at.epoch_trained, 1e-9),
        "data_seconds": at.epoch_waited,
        "data_share": at.epoch_waited / max(at.epoch_trained, 1e-9),
    } | now.step.facts()


def _mask_changes(now: Session) -> tuple[tuple[int, int], dict[str, float]]:
    """Entries of the masks that differ from those before the epoch, and those of them kept now.

    And the share of each weight under a rule that the deployed path may see.
    """
    before, counts, view = now.state.before, [], now.plan.deployed_view
    for name, mask in now.dual.masks.items():
        was, left = before[name], view.left(mask)
        kinds = (mask != was, mask > was, left, torch.ones_like(mask))
        counts.append(torch.stack([kind.sum() for kind in kinds]))
    if not counts:
        return (0, 0), {}
    # One read for all layers.
    rows = now.dual.placement.totals([torch.stack(counts)])[0].tolist()
    density = {name: row[2] / row[3] for name, row in zip(now.dual.masks, rows)}
    return (int(sum(row[0] for row in rows)), int(sum(row[1] for row in rows))), density


def finish(
    now: Session, accuracies: dict[str, dict[str, float]] | None, examples_per_epoch: int
) -> Result:
    """Load the deployed weights, and sum up. accuracies: None if the run was interrupted."""
    deploy_average(now.step.average)
    result = result_of(now, accuracies or {}, examples_per_epoch, accuracies is None)
    if accuracies is not None:
        now.dual.placement.restore(now.dual)
    return result


def result_of(
    now: Session,
    accuracies: dict[str, dict[str, float]],
    examples_per_epoch: int,
    interrupted: bool = False,
) -> Result:
    """Raises SparsityError if the masks are not the plan's."""
    at = now.state.position
    sparsity = check_sparsity(now.dual, masks_step(at.step))
    num_examples = at.epoch * examples_per_epoch + at.examples
    return Result(
        step=at.step,
        epoch=at.epoch,
        accuracies=accuracies,
        sparsity_asked=sparsity.asked,
        sparsity_measured=sparsity.measured,
        num_kept=sparsity.num_kept,
        num_weights=sparsity.num_weights,
        seconds=at.seconds,
        examples_per_second=num_examples / max(at.seconds, 1e-9),
        cost=training_cost(now.plan.model_copy(update={"num_steps": at.step}), now.step.dense()),
        data_seconds=at.waited,
        data_share=at.waited / max(at.trained, 1e-9),
        interrupted=interrupted,
        ended=at.step >= now.plan.num_steps or is_over(now.plan, at),
        sparsity_counted=sparsity.pruned,
        counts=sparsity.counts,
        at_floor=sparsity.at_floor,
        at_ceiling=sparsity.at_ceiling,
        rewinds=tuple(at.rewinds),
        rules=sparsity.rules,
        patterns=now.notes,
    )


# -- the log -----------------------------------------------------------------------------------


class Log:
    """Where the lines of epochs go; nowhere without a writer."""

    def __init__(self, run: RunFolder, display: Display, events: tensorboard.SummaryWriter | None):
        self.run, self.display, self.events = run, display, events

    def write(self, line: dict[str, Any]) -> None:
        """Add the line of an epoch. InputError where the disk refuses it."""
        if self.events is None:
            return
        self.run.append_metrics(line)
        try:
            write_events(self.events, line)
        except OSError as error:
            raise cannot_write(self.run.events, error) from None
        self.display.epoch(line)


@contextmanager
def open_log(now: Session) -> Iterator[Log]:
    """The log of a run that starts, or resumes, at the step of its position.

    Of the processes of a job, the first one writes it.
    """
    run, step = now.run, now.state.position.step
    if not now.options.ranks.is_first:
        yield Log(run, now.display, None)
        return
    try:
        events = tensorboard.SummaryWriter(str(run.events), purge_step=step)
        if step == 0:
            write_settings(events, now.plan, now.task.metrics)
    except OSError as error:
        raise cannot_write(run.events, error) from None
    try:
        yield Log(run, now.display, events)
    finally:
        with suppress(OSError):  # each line was flushed, or an error has said why not
            events.close()


# -- the table at the end of a run ----------------------------------------------------------------


def result_table(result: Result, plan: Plan, files: Sequence[Path] = ()) -> Table:
    """The end of a run as a table to print. `result` is the trainer's."""
    table = Table(title=plan.recipe.title or plan.recipe.name, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    for path, accuracy in result.accuracies.items():
        deployed = " (deployed)" if path == plan.deploy else ""
        numbers = "  ".join(f"{n} {metric_text(n, value, '.2%')}" for n, value in accuracy.items())
        table.add_row(f"{path} path{deployed}", numbers)
    if result.num_weights:
        for row in _sparsity_rows(result):
            table.add_row(*row)
        table.add_row("weights kept", f"{result.num_kept:,} of {result.num_weights:,}")
        for bound, names in (("floor", result.at_floor), ("ceiling", result.at_ceiling)):
            if names:
                table.add_row(f"layers at their {bound}", f"{len(names)}: {_few(names)}")
    table.add_row("steps", f"{result.step:,} of {plan.num_steps:,}")
    rate = f"{result.examples_per_second:.0f} examples/s"
    table.add_row("time", f"{_clock(result.seconds)}  ({rate})")
    waited = f"{result.data_seconds:.1f} s, {result.data_share:.1%} of the time of the steps"
    table.add_row("waiting for data", waited)
    for back in result.rewinds:
        fact = f"from step {back['step']:,} to {back['to']:,}: no finite {back['what']}"
        table.add_row("went back", fact)
    for text in result.patterns:
        table.add_row("2:4 patterns", text)
    table.add_row("training cost", f"{result.cost:.2f} x a dense run (passes, dense arithmetic)")
    if files:  # the folder once: a name that is cut in two can be neither read nor copied
        folder = os.path.commonpath([file.parent for file in files])
        table.add_row("folder", folder)
        for i, file in enumerate(files):
            table.add_row("files" if i == 0 else "", os.path.relpath(file, folder))
    return table


def _sparsity_rows(result: Result) -> Iterator[tuple[str, str]]:
    """Requested and measured; each of several rules alone, as their units do not add up."""
    measured = f"{result.sparsity_measured:.2%} of weights"
    if len(result.rules) == 1:
        asked = f"{result.sparsity_asked:.2%} of {result.counts}"
        yield "sparsity asked", BY_THRESHOLD if result.rules[0].is_result else asked
        if result.counts != "weights":
            measured = f"{result.sparsity_counted:.2%} of {result.counts}, {measured}"
    else:
        for rule in result.rules:
            asked = BY_THRESHOLD if rule.is_result else f"{rule.asked:.2%} of {rule.counts} asked"
            fact = f"{asked}, {rule.pruned:.2%} measured"
            yield f"rule {Path(rule.rule).name}", fact
    yield "sparsity measured", measured


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
