"""What a run reports: the line of an epoch, where it is written, the Result.

In:   a Session, the accuracies of its paths.
Out:  lines in metrics.jsonl, in TensorBoard's events and on the display, of the first rank alone;
      a Result.
Not:  nothing is evaluated (evaluate.py), and the display draws itself (progress.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from dcil_dsl.plan.cost import training_cost
from dcil_dsl.training.average import deploy_average
from dcil_dsl.training.metrics import RuleSparsity, check_sparsity, masks_step
from dcil_dsl.training.optim import rate_at
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder, cannot_write
from dcil_dsl.training.session import Session, check_deferred, show_notes


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    accuracies         {path: {metric: value}}, the metrics of the task; empty if interrupted
    sparsity_asked     what the schedule asks at `step`, a fraction of what the budgets count
    sparsity_measured  of the weights under rules
    sparsity_counted   of what the budgets count: to be compared with what was asked
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


def epoch_line(now: Session, accuracies: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What metrics.jsonl says of the epoch, or of the part of it that was trained."""
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
    flips, revived = _mask_changes(now)
    return {
        "step": at.step,
        "epoch": at.epoch + 1,
        "lr": rate_at(plan, max(at.step - 1, 0)) * at.rate_factor,
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
        "mask_flips": flips,
        "mask_revived": revived,
        "rewinds": len(at.rewinds),
        "seconds": at.epoch_trained,
        "examples_per_second": at.examples / max(at.epoch_trained, 1e-9),
        "data_seconds": at.epoch_waited,
        "data_share": at.epoch_waited / max(at.epoch_trained, 1e-9),
    } | now.step.facts()


def _mask_changes(now: Session) -> tuple[int, int]:
    """Entries of the masks that differ from those before the epoch, and those of them kept now."""
    before, changed = now.state.before, []
    for name, mask in now.dual.masks.items():
        changed.append(torch.stack([(mask != before[name]).sum(), (mask > before[name]).sum()]))
    totals = torch.stack(changed).sum(0).cpu() if changed else torch.zeros(2, dtype=torch.int64)
    flips, revived = now.dual.placement.totals([totals])[0].tolist()  # one read for all layers
    return int(flips), int(revived)


def finish(
    now: Session, accuracies: dict[str, dict[str, float]] | None, examples_per_epoch: int
) -> Result:
    """Put in place what is deployed, and sum up. accuracies: None if the run was interrupted."""
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

    def __init__(self, run: RunFolder, display: Display, events: SummaryWriter | None):
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
def open_log(run: RunFolder, display: Display, step: int, writes: bool) -> Iterator[Log]:
    """The log of a run that resumes at `step`. writes: whether this is the rank that writes it."""
    if not writes:
        yield Log(run, display, None)
        return
    try:
        events = SummaryWriter(str(run.events), purge_step=step)
    except OSError as error:
        raise cannot_write(run.events, error) from None
    try:
        yield Log(run, display, events)
    finally:
        with suppress(OSError):  # each line was flushed, or an error has said why not
            events.close()


def write_events(writer: SummaryWriter, line: Mapping[str, Any]) -> None:
    """The numbers of one line as TensorBoard scalars: "losses/...", "top1/sparse", "lr"."""
    for name, value in line.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                writer.add_scalar(f"{name}/{inner}", number, line["step"])
        elif isinstance(value, list):  # names, of which a curve can tell how many
            writer.add_scalar(name, len(value), line["step"])
        elif name not in ("step", "epoch"):
            writer.add_scalar(name, value, line["step"])
    writer.flush()
