"""Training: the loop, on one page and without hooks.

In:   a Dual, batches of (images, labels), a run folder, and the machine's Options.
Out:  a trained Dual that holds the weights to deploy; a line of metrics, events and a checkpoint
      every epoch; a Result.
Not:  what a step means is the plan's (losses.py, optim.py, the dual graph); no data is read here
      and nothing is exported.

Everything random in a step (dropout and its kin) is drawn from a generator seeded with the run's
seed and the step, and every batch depends on the seed, the epoch and its place in it. So a step is
a function of the state in the checkpoint, and a run that was killed and resumed takes the same
steps, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.loader import Loader
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.training.accumulate import Part, part_of_step
from dcil_dsl.training.average import deploy_average, deployed, update_average
from dcil_dsl.training.balance import weigh_terms
from dcil_dsl.training.distributed import step_seed
from dcil_dsl.training.evaluate import check_fit, check_not_empty, evaluate
from dcil_dsl.training.finite import (
    BROKEN,
    NotFinite,
    stop_if_no_finite_loss,
    stop_if_no_finite_outputs,
)
from dcil_dsl.training.integrate import integrate
from dcil_dsl.training.interrupt import Wish, wish_to_stop
from dcil_dsl.training.late_phase import end_turn, forget_gathered, gather, take_turn
from dcil_dsl.training.losses import open_losses, refuse_constant
from dcil_dsl.training.machine import Options, laid_out
from dcil_dsl.training.optim import forget_pruned, set_rate
from dcil_dsl.training.progress import Display, write_events
from dcil_dsl.training.result import Result, epoch_line, result_of
from dcil_dsl.training.rewind import rewind
from dcil_dsl.training.run import RunFolder, cannot_write
from dcil_dsl.training.session import (
    Session,
    batches,
    look,
    loss_scale,
    merge_ranks,
    merge_scores,
    next_epoch,
    note_masks,
    rate_of,
    save,
    start_session,
)
from dcil_dsl.training.sharding import unshard
from dcil_dsl.training.sync_norms import synced_norms

STEPS_BETWEEN_LOOKS = 50  # reading a loss makes an accelerator wait; on a CPU every step is free


def train(
    dual: Dual,
    train_loader: Loader,
    val_loader: Loader,
    run: RunFolder,
    options: Options = Options(),
    display: Display | None = None,
) -> Result:
    """Train `dual` as its plan says, in place, from the start or from the run's checkpoint.

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
    norms = nullcontext()
    if plan.train.sync_norms:
        norms = synced_norms(dual, options.ranks, options.device)
    with wish_to_stop() as wish, display or Display() as display, norms:
        now = start_session(dual, run, options, display)
        try:
            accuracies = _run_to_end(now, train_loader, val_loader, wish)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory at step {now.state.position.step}: {str(error).splitlines()[0]}",
                help="use --checkpoint-activations, --precision bf16, or a "
                "smaller `batch_size` in the recipe's `data`",
            ) from None
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"a batch norm at step {now.state.position.step} has one number of each channel "
                "and nothing to compare it with",
                help="at least two examples a process: a larger `batch_size` in the recipe's "
                "`data`, or `sync_norms = true` in its `train`"
                if now.options.ranks.count > 1
                else "a larger `batch_size` in the recipe's `data`",
            ) from None
        deploy_average(now.average)
        interrupted = accuracies is None
        result = result_of(now, accuracies or {}, train_loader.num_examples, interrupted)
        if now.state.shards is not None and not interrupted:
            unshard(dual, now.state.shards)
        return result


def _run_to_end(now: Session, train_loader: Loader, val_loader: Loader, wish: Wish):
    """_run_epochs, begun again where it has to go back."""
    while True:
        try:
            return _run_epochs(now, train_loader, val_loader, wish)
        except NotFinite as error:
            met = error
        # Out of the `except`, and without the frames that hold on to the batches of the loader.
        rewind(now, met.with_traceback(None))


def _run_epochs(now: Session, train_loader: Loader, val_loader: Loader, wish: Wish):
    """The accuracies at the end, or None if a wish to stop came first."""
    plan, state, at, max_steps = now.plan, now.state, now.state.position, now.options.max_steps
    end = plan.num_steps if max_steps is None else min(max_steps, plan.num_steps)
    if at.told and at.step >= end:  # resumed, with nothing left to do
        return _evaluated(now, val_loader, wish)

    is_first = now.options.ranks.is_first
    at.told = at.told and not at.batch  # a line about part of an epoch makes room for the whole
    if is_first:
        now.run.cut_metrics(at.epoch)
        lines = now.run.read_metrics()
        now.display.begin(plan, at.step, end, lines[-1] if lines else None)
    with _events(now.run, at.step) if is_first else nullcontext() as events:
        while True:
            now.dual.train()
            now.stopping = now.options.ranks.any(wish.is_there)
            if at.step < end and not now.stopping:
                for images, labels in batches(now, train_loader):
                    part = part_of_step(plan, train_loader, at.batch)
                    _learn(now, laid_out(images, now.options), labels, part)
                    if part.is_last:
                        _update(now, part, wish)
                        if at.step == end or now.stopping:
                            break
            merge_ranks(now)
            accuracies = None if now.stopping else {}  # no worker is asked any more: it may be gone
            if not now.stopping and _is_evaluated(now, end):
                accuracies = _evaluated(now, val_loader, wish)
            if accuracies is None:
                save(now)
                return None
            line = epoch_line(now, accuracies)
            if is_first:
                now.run.append_metrics(line)
                _note_events(now.run, events, line)
                now.display.told(line)
            at.told = True
            if at.batch >= train_loader.num_batches:  # fewer than there were, if resumed anyway
                next_epoch(state)
            save(now)
            if at.step >= end:
                return accuracies


def _evaluated(now: Session, val_loader: Loader, wish: Wish):
    """The accuracies of what would be deployed; NotFinite where there is an output that is not."""
    with deployed(now.average):
        accuracies = evaluate(now.dual, val_loader, now.options, wish)
    if any(BROKEN in accuracy for accuracy in (accuracies or {}).values()):
        # A loss that was not finite came first, and names the step and the term.
        stop_if_no_finite_loss(now.plan, now.options.ranks.gather(now.first_bad).tolist())
    step = max(now.state.position.step - 1, 0)
    stop_if_no_finite_outputs(now.plan, accuracies or {}, step, val_loader.num_examples)
    return accuracies


def _is_evaluated(now: Session, end: int) -> bool:
    at = now.state.position
    return at.step >= end or (at.epoch + 1) % now.options.evaluate_every == 0


def _learn(now: Session, images: Tensor, labels: Tensor, part: Part) -> None:
    """The gradients of one batch, or of this rank's part of it, added to those of its step."""
    plan, at, ranks = now.plan, now.state.position, now.options.ranks
    if not now.fits:
        check_fit(now.dual, images, labels, now.options)
        now.fits = True
    seed = step_seed(plan.train.seed, at.step, ranks.rank)
    if part.is_first:
        torch.manual_seed(seed)
        merge_scores(now)
        if now.dual.begin_step(at.step, loss_scale(now)):
            note_masks(now)
            forget_pruned(now.state.optimizer, now.dual)
            forget_gathered(now.dual, now.state.memory)
        take_turn(now.dual, now.state.optimizer, at.step, now.state.memory)
        now.state.optimizer.zero_grad(set_to_none=True)
    active = open_losses(plan, at.step)
    is_short = part.size < plan.data.batch_size
    copies = ranks.count if len(labels) == part.size else 1  # of a batch that is not parted
    # The mean over the step; of what the ranks have, the learner takes the mean.
    weight = ranks.count * len(labels) / (copies * part.total)

    def backward(loss: Tensor) -> None:
        refuse_constant(loss)
        now.scaler.scale(loss if weight == 1 else weight * loss).backward()

    def learn(terms: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return now.learner.learn(
            images, labels, terms, backward, is_short=is_short, closes=part.is_last
        )

    def learn_alone(term: int) -> None:
        torch.manual_seed(seed)
        learn((term,))

    def differentiate() -> tuple[Tensor, Tensor]:
        loss, sums = learn(active)
        bad = ~sums[: len(plan.losses)].isfinite() & (now.first_bad < 0)
        now.first_bad = torch.where(bad, at.step, now.first_bad)
        return loss, sums

    def again() -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)  # the same random numbers at every evaluation of one step
        told = differentiate()
        if ranks.count > 1:  # the learner's gradients lie where the next evaluation puts its own
            for _, parameter in now.dual.trainable():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()
        return told

    if plan.train.balance is not None:
        weigh_terms(now.dual, at.step, learn_alone, now.state.memory)
        torch.manual_seed(seed)
    if plan.train.integrator is None:
        now.loss, sums = differentiate()
    else:
        now.loss, sums = integrate(now.dual, rate_of(now), again, now.state.memory)
    now.state.sums += sums if copies == 1 else sums / copies
    at.batch += 1


def _update(now: Session, part: Part, wish: Wish) -> None:
    """One step of the optimiser, and a look at what the device has noted."""
    plan, at, optimizer = now.plan, now.state.position, now.state.optimizer
    set_rate(optimizer, rate_of(now))
    has_penalties = any(group.penalties for group in plan.groups)
    if plan.train.clip is not None or has_penalties or now.state.shards is not None:
        now.scaler.unscale_(optimizer)  # in parts: here the ranks tell each other of infinities
    if plan.train.clip is not None:
        if now.state.shards is None:
            clip_grad_norm_([p for _, p in now.dual.trainable()], plan.train.clip)
        else:
            now.state.shards.clip(dict(now.dual.trainable()), plan.train.clip)
    if has_penalties:  # as weight decay is: after clipping
        now.dual.add_penalties(at.step)
    gather(now.dual, at.step, now.state.memory)
    now.scaler.step(optimizer)
    now.scaler.update()
    if plan.train.average is None:
        update_average(now.average, plan.train.ema)
    end_turn(now.dual, optimizer, at.step, now.state.memory, now.average)

    active = open_losses(plan, at.step)
    for name in [plan.losses[i].name for i in active] + list(plan.phase_at(at.step).paths):
        at.examples_by[name] = at.examples_by.get(name, 0) + part.total
    at.step, at.examples = at.step + 1, at.examples + part.total
    at.told = False
    is_look = at.step % (1 if now.loss.device.type == "cpu" else STEPS_BETWEEN_LOOKS) == 0
    if is_look:
        look(now)
        now.display.step(at.step, now.loss.item())
    if is_look or now.options.ranks.count == 1:  # several ranks stop after the same step
        now.stopping = now.options.ranks.any(wish.is_there)


@contextmanager
def _events(run: RunFolder, step: int) -> Iterator[SummaryWriter]:
    try:
        writer = SummaryWriter(str(run.events), purge_step=step)
    except OSError as error:
        raise cannot_write(run.events, error) from None
    try:
        yield writer
    finally:
        with suppress(OSError):  # each line was flushed, or it was told why not
            writer.close()


def _note_events(run: RunFolder, events: SummaryWriter, line: dict) -> None:
    try:
        write_events(events, line)
    except OSError as error:
        raise cannot_write(run.events, error) from None
