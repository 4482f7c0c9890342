"""Training: the loop, on one page and without hooks.

In:   a Dual, batches of a task, a run folder, and the machine's Options.
Out:  a trained Dual that holds the weights to deploy; a line of metrics, events and a checkpoint
      every epoch; a Result.
Not:  what a step means is the plan's (step.py, losses.py, the dual graph); no data is read here
      and nothing is exported.

Everything random in a step (dropout and its kin) is drawn from generators seeded with the run's
seed and the step, and every batch depends on the seed, the epoch and its place in it. So a step is
a function of the state in the checkpoint, and a run that was killed and resumed takes the same
steps, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.side_effects import drawn_apart, seed_generators
from dcil_dsl.training.average import deployed
from dcil_dsl.training.evaluate import Accuracies, check_not_empty, evaluate
from dcil_dsl.training.machine import Options
from dcil_dsl.training.process import Wish, wish_to_stop
from dcil_dsl.training.progress import Display
from dcil_dsl.training.result import Result, epoch_line, finish, open_log
from dcil_dsl.training.run import RunFolder
from dcil_dsl.training.session import (
    Session,
    batches,
    begin_batch,
    begin_epochs,
    check_loss,
    count_batch,
    end_step,
    explained,
    merge_ranks,
    next_epoch,
    rewind,
    save,
    seed_of,
    start_session,
    take_best,
)
from dcil_dsl.training.start import record_start
from dcil_dsl.training.step import BROKEN, NotFinite, stop_if_no_finite_outputs
from dcil_dsl.training.sync_norms import planned_norms
from dcil_dsl.training.watch import keep_best, note


def train(
    dual: Dual,
    train_loader: BatchLoader,
    val_loader: BatchLoader,
    run: RunFolder,
    options: Options = Options(),
    display: Display | None = None,
    is_fresh: bool = True,
) -> Result:
    """Train `dual` as its plan says, in place, from the start or from the run's checkpoint.

    is_fresh  whether its first weights are random; others are evaluated before the first step

    SIGINT, SIGTERM and SIGHUP end it after the step, with a checkpoint. Raises InputError where the
    data does not fit, a loss is not finite or the disk refuses; SparsityError where the masks do
    not hold what the plan asks.
    """
    plan = dual.plan
    num_steps = -(-train_loader.num_batches // plan.train.accumulate)
    if num_steps != plan.steps_per_epoch:
        raise InputError(
            f"an epoch of this data has {count(num_steps, 'step')}, and the plan was made "
            f"for {plan.steps_per_epoch}"
        )
    check_not_empty(val_loader)
    shown, norms = display or Display(), planned_norms(dual, options.ranks, options.device)
    with wish_to_stop() as wish, shown, norms, drawn_apart():
        record_start(dual, val_loader, run, options, shown, wish, is_fresh)
        now = start_session(dual, run, options, shown, train_loader.task)
        with explained(now):
            accuracies = _run_to_end(now, train_loader, val_loader, wish)
        return finish(now, accuracies, train_loader.num_examples)


def _run_to_end(
    now: Session, train_loader: BatchLoader, val_loader: BatchLoader, wish: Wish
) -> Accuracies | None:
    """_run_epochs, started again where the run goes back to a checkpoint."""
    while True:
        try:
            return _run_epochs(now, train_loader, val_loader, wish)
        except NotFinite as error:
            met = error
        # Out of the `except`, and without the frames that hold on to the batches of the loader.
        rewind(now, met.with_traceback(None))


def _run_epochs(
    now: Session, train_loader: BatchLoader, val_loader: BatchLoader, wish: Wish
) -> Accuracies | None:
    """The accuracies at the end, or None if a signal came first."""
    state, at, end = now.state, now.state.position, now.end
    if at.logged and at.step >= end:  # resumed, with nothing left to do
        take_best(now)
        return _evaluated(now, val_loader, wish)
    begin_epochs(now)
    with open_log(now) as log:
        while True:
            _train_epoch(now, train_loader, wish)
            merge_ranks(now)
            accuracies: Accuracies | None = {}
            if now.stopping:  # no worker is asked any more: it may be gone
                accuracies = None
            elif at.step >= end or (at.epoch + 1) % now.options.evaluate_every == 0:
                accuracies = _evaluated(now, val_loader, wish)
            if accuracies is None:
                save(now)
                return None
            log.write(epoch_line(now, accuracies))
            at.logged = True
            if at.batch >= train_loader.num_batches:  # fewer than there were, if resumed anyway
                note(now.plan, at, now.task.metrics[0], accuracies)
                next_epoch(state)
            save(now)
            if now.options.ranks.is_first:
                keep_best(now.plan, at, now.run.checkpoint)
            if at.step >= now.end:
                return _evaluated(now, val_loader, wish) if take_best(now) else accuracies


def _train_epoch(now: Session, loader: BatchLoader, wish: Wish) -> None:
    """What is left of the epoch, or of it until the end of the run or a signal."""
    now.dual.train()
    now.stopping = now.options.ranks.any(wish.is_there)
    if now.state.position.step >= now.end or now.stopping:
        return
    for given in batches(now, loader):
        batch = begin_batch(now, loader, given)
        now.loss, sums = now.step.gradients(batch)
        count_batch(now, sums)
        if batch.is_last:
            now.step.apply(batch.rate)
            end_step(now, batch, wish)
            if now.state.position.step == now.end or now.stopping:
                return


def _evaluated(now: Session, val_loader: BatchLoader, wish: Wish) -> Accuracies | None:
    """The accuracies of what would be deployed; NotFinite where there is an output that is not."""
    seed_generators(seed_of(now), now.dual.original)  # a model may draw in evaluation too
    with deployed(now.step.average):
        accuracies = evaluate(now.dual, val_loader, now.options, wish)
    if any(BROKEN in accuracy for accuracy in (accuracies or {}).values()):
        check_loss(now)  # a loss that was not finite came first, and names the step and the term
    step = max(now.state.position.step - 1, 0)
    stop_if_no_finite_outputs(now.plan, accuracies or {}, step, val_loader.num_examples)
    return accuracies
