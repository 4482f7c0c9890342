"""One call of train, around its steps: starting, preparing batches, counting, saving.

In:   a dual graph, a run folder and Options.
Out:  Session, what the loop needs.
Not:  no step is taken here (trainer.py); the results of a run are in result.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics import counting
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.side_effects import seed_generators
from dcil_dsl.plan.plan import Plan
from dcil_dsl.tasks import IMAGES, Task
from dcil_dsl.training.checkpoint import State, load_anyway, load_checkpoint, save_checkpoint
from dcil_dsl.training.checkpoint_files import Position, last_good
from dcil_dsl.training.conflicts import check_machine_allows, check_plan_allows
from dcil_dsl.training.distributed import (
    compare_fingerprints,
    mask_fingerprints,
    merge_scores,
    step_seed,
)
from dcil_dsl.training.evaluate import check_fit
from dcil_dsl.training.integrate import IntegratedStep
from dcil_dsl.training.losses import open_losses
from dcil_dsl.training.machine import Options, laid_out, lay_out_weights
from dcil_dsl.training.process import Wish
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder
from dcil_dsl.training.step import (
    AveragedStep,
    Batch,
    GradientStep,
    MirroredStep,
    NotFinite,
    RegularizedStep,
    Step,
    part_of_step,
    stop_if_no_finite_loss,
    stop_if_no_finite_weights,
)
from dcil_dsl.training.watch import best_of, best_step, is_over, rate_share
from dcil_dsl.words.registry import extra
from dcil_dsl.words.tensors.outputs import IGNORED
from dcil_dsl.words.tensors.widest import widest

STEPS_BETWEEN_CHECKS = 50  # reading a loss makes an accelerator wait; on a CPU every step is free


@dataclass
class Session:
    """The state, and what it takes to make and to report a step.

    prints      (step, fingerprints of the masks of every rank) not compared yet
    stopping    whether the ranks have agreed to stop
    loss        of the latest batch
    fits        whether a batch was tried
    saved       the step of the checkpoint, None where there is none
    notes       what was shown of how steps are computed
    """

    plan: Plan
    dual: Dual
    options: Options
    run: RunFolder
    display: Display
    state: State
    step: Step
    loss: Tensor
    task: Task
    prints: list[tuple[int, Tensor]] = field(default_factory=list)
    stopping: bool = False
    saved: int | None = None
    fits: bool = False
    notes: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)

    @property
    def end(self) -> int:
        """The step at which training ends."""
        if is_over(self.plan, self.state.position):
            return self.state.position.step
        most, num_steps = self.options.max_steps, self.plan.num_steps
        return num_steps if most is None else min(most, num_steps)


# -- the start -----------------------------------------------------------------------------------


def start_session(
    dual: Dual, run: RunFolder, options: Options, display: Display, task: Task = IMAGES
) -> Session:
    """Everything on its device, as at the start of a run or as the checkpoint has it."""
    plan, device, ranks = dual.plan, torch.device(options.device), options.ranks
    check_machine_allows(options)
    check_plan_allows(plan, options)
    ranks.copy_first(dual.state_dict().values())
    make_step = place(dual, options)
    dual.to(device)
    if options.channels_last and dual.placement.is_whole:
        lay_out_weights(dual)
    dual.refresh(0)  # before the first step too, the masks are the plan's
    optimizer = plan.make_optimizer(dual)
    step = wrap_step(make_step(dual, optimizer, options, task))
    num_sums = len(plan.losses) + len(plan.paths)
    sums = torch.zeros(num_sums, dtype=widest(torch.device(device)), device=device)
    state = State(
        dual,
        optimizer,
        step.average.mean,
        sums,
        copied_masks(dual),
        Position(),
        memory=step.memory,
    )
    if resumes := options.resume and ranks.any(run.had_checkpoint):
        load = load_anyway if options.anyway else load_checkpoint
        load(run.checkpoint, state)
        for text in run.lost(state.position.epoch) if ranks.is_first and not options.shard else ():
            display.note(f"note: {text}")
    if options.checkpoint_activations:
        recompute_activations(dual)
    now = Session(plan, dual, options, run, display, state, step, sums.sum(), task)
    if resumes:
        after_loading(now)
    # One of this plan, to go back to. Of an adopted one also because the folder has this plan now,
    # and no step may be left that would save another.
    if options.on_nan == "rewind" and not resumes or resumes and options.anyway:
        save(now)
    note_masks(now)
    show_notes(now)
    return now


def place(dual: Dual, options: Options) -> type[GradientStep]:
    """Put the weights where the options have them; the step of weights that lie there."""
    if not options.shard:
        return GradientStep
    sharding: type[GradientStep] = extra("sharding.step").shard_for_step(dual, options)
    return sharding


def wrap_step(step: GradientStep) -> Step:
    """The step with everything around it that its plan asks for, from the inside out."""
    wrapped: Step = step
    plan, train = step.dual.plan, step.dual.plan.train
    if train.integrator is not None:
        wrapped = IntegratedStep(wrapped, train.integrator)
    if train.clip is not None or plan.has_penalties:
        wrapped = RegularizedStep(wrapped)
    if train.mirror is not None:
        wrapped = MirroredStep(wrapped, train.mirror)
    if train.ema is not None:
        wrapped = AveragedStep(wrapped, train.ema)
    if any(path.compute == "kept" for path in plan.paths):
        wrapped = extra("sparse_compute.step").KeptStep(wrapped)
    for word in (train.balance, train.average):
        if word is not None:
            wrapped = word.wrap(wrapped)
    return wrapped


def after_loading(now: Session) -> None:
    """What a checkpoint says of things that are not in its State."""
    now.dual.forget_step()
    if not now.options.ranks.is_first:
        now.state.sums.zero_()  # they are of all ranks, and added up again when they are read
    if now.state.position.scaler:
        now.step.plain.scaler.load_state_dict(now.state.position.scaler)
    now.saved = now.state.position.step


def begin_epochs(now: Session) -> None:
    """Make metrics and display ready to resume from the present step."""
    at = now.state.position
    at.logged = at.logged and not at.batch  # a line about part of an epoch makes room for the whole
    if now.options.ranks.is_first:
        now.run.cut_metrics(at.epoch)
        lines = now.run.read_metrics()
        now.display.begin(now.plan, at.step, now.end, lines)


def show_notes(now: Session) -> None:
    """Say how steps are computed, and say it again where that has changed."""
    notes = now.step.notes()
    for text in notes:
        if text not in now.notes:
            now.display.note(text)
    now.notes = notes


@contextmanager
def explained(now: Session) -> Iterator[None]:
    """Errors of torch that a person can do something about, as InputErrors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory at step {now.state.position.step}: {str(error).splitlines()[0]}",
            help="use --checkpoint-activations, --precision bf16, or a "
            "smaller `batch_size` in the recipe's `data`",
        ) from None
    except IndexError as error:
        found = re.fullmatch(r"Target (-?\d+) is out of bounds\.", str(error))
        if found is None:
            raise
        raise InputError(
            f"a batch at step {now.state.position.step} has the class number {found[1]}, which the "
            "model does not have",
            help=f"classes are counted from 0; {IGNORED} marks what has none",
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        step = now.state.position.step
        raise InputError(
            f"a batch norm at step {step} got a single value per channel; it needs at least two",
            help="at least two examples a process: a larger `batch_size` in the recipe's "
            "`data`, or `sync_norms = true` in its `train`"
            if now.options.ranks.count > 1
            else "a larger `batch_size` in the recipe's `data`",
        ) from None


# -- batches and steps ---------------------------------------------------------------------------


def batches(now: Session, loader: BatchLoader) -> Iterator[Any]:
    """The rest of the epoch; the time that is spent waiting for it is recorded.

    Where no batch comes, for an image that cannot be read or a worker that was killed, the steps
    so far are saved before the InputError propagates. One of several ranks cannot save alone, and
    no run resumes in the middle of a step: then the last checkpoint remains.
    """
    at = now.state.position
    left = iter(loader.epoch(at.epoch, at.batch))
    while True:
        began = time.perf_counter()
        try:
            batch = _next_or_saved(now, left)
            waited = time.perf_counter() - began
            at.waited, at.epoch_waited = at.waited + waited, at.epoch_waited + waited
            if batch is None:
                return
            yield batch
        finally:  # after the last step too, which leaves the loop
            spent = time.perf_counter() - began
            at.trained, at.epoch_trained = at.trained + spent, at.epoch_trained + spent


def _next_or_saved(now: Session, left: Iterator[Any]) -> Any:
    try:
        return next(left, None)
    except InputError as error:
        if now.options.ranks.count > 1 or now.state.position.batch % now.plan.train.accumulate:
            raise
        save(now)
        steps = counting.count(now.state.position.step, "step is", "steps are")
        done = f"{steps} saved; --resume continues from there"
        raise InputError(error.message, "\n".join(filter(None, (error.help, done)))) from error


def begin_batch(now: Session, loader: BatchLoader, given: Any) -> Batch:
    """The batch as its step takes it; with the first batch of a step, the masks of the step."""
    at = now.state.position
    task = now.task
    inputs, targets, count = task.inputs(given), task.targets(given), task.count(given)
    inputs = laid_out(inputs, now.options)
    if not now.fits:
        check_fit(now.dual, task, inputs, targets, count, now.options)
        now.fits = True
    part, moved = part_of_step(now.plan, loader, at.batch), False
    if part.is_first:
        seed_generators(seed_of(now), now.dual.original)
        merge_scores(now.dual, at.step, now.options.ranks)
        moved = now.dual.begin_step(at.step, now.step.plain.loss_scale())
        if moved:
            note_masks(now)
    return Batch(
        inputs,
        targets,
        count,
        at.step,
        seed_of(now),
        open_losses(now.plan, at.step),
        now.plan.lr_at(at.step) * rate_share(now.plan, at),
        part.is_first,
        part.is_last,
        part.size,
        part.total,
        moved,
    )


def seed_of(now: Session) -> int:
    """Where the random numbers of the current step start, on this rank."""
    return step_seed(now.plan.train.seed, now.state.position.step, now.options.ranks.rank)


def count_batch(now: Session, sums: Tensor) -> None:
    """Add what a batch has given to the sums of the epoch."""
    now.state.sums += sums
    now.state.position.batch += 1


def end_step(now: Session, batch: Batch, wish: Wish) -> None:
    """Count the step, and now and then read what the device has recorded."""
    plan, at = now.plan, now.state.position
    names = [plan.losses[i].name for i in batch.losses]
    for name in [*names, *plan.phase_at(at.step).paths]:
        at.examples_by[name] = at.examples_by.get(name, 0) + batch.total
    at.step, at.examples = at.step + 1, at.examples + batch.total
    at.logged = False
    reads = at.step % (1 if now.loss.device.type == "cpu" else STEPS_BETWEEN_CHECKS) == 0
    if reads:
        show_step(now)
    if reads or now.options.ranks.count == 1:  # several ranks stop after the same step
        now.stopping = now.options.ranks.any(wish.is_there)


def show_step(now: Session) -> None:
    """Read what the device has recorded, and show the loss."""
    check_deferred(now)
    now.display.step(now.state.position.step, now.loss.item())


def next_epoch(state: State) -> None:
    """Forget what was summed up over the epoch that is over."""
    at = state.position
    at.epoch, at.batch, at.examples = at.epoch + 1, 0, 0
    at.epoch_trained, at.epoch_waited, at.examples_by = 0.0, 0.0, {}
    state.sums.zero_()
    state.before = copied_masks(state.dual)


def copied_masks(dual: Dual) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in dual.masks.items()}


# -- saving, and what the ranks exchange for it --------------------------------------------------


def save(now: Session) -> None:
    """Write the checkpoint, unless what is in it is not finite or the masks are not the plan's."""
    check_deferred(now)
    at, ranks = now.state.position, now.options.ranks
    stop_if_no_finite_weights(
        now.plan, now.dual.trainable(), max(at.step - 1, 0), ranks, now.dual.named_buffers()
    )
    now.saved = at.step
    state = replace(now.state, sums=ranks.sum(now.state.sums))
    if not ranks.is_first and now.dual.placement.is_whole:
        return
    at.scaler = now.step.plain.scaler.state_dict()
    at.seconds += time.perf_counter() - now.began
    now.began = time.perf_counter()
    save_checkpoint(now.run.checkpoint, state)


@torch.no_grad()
def merge_ranks(now: Session) -> None:
    """One network of all ranks: the mean of the running statistics that each has kept.

    What is evaluated and saved. A running mean is linear in what it has seen, so that merging at
    one time or another gives the same later ones, but for rounding. What is in parts no two ranks
    have.
    """
    placement, averages = now.dual.placement, now.step.average.mean
    buffers = {
        name: buffer
        for name, buffer in now.dual.named_buffers()
        if buffer.is_floating_point() and not placement.holds_part(name)
    }
    means = [averages[name] for name in buffers if name in averages]
    now.options.ranks.average([*buffers.values(), *means])


def note_masks(now: Session) -> None:
    """Exchange the fingerprints of the masks, for the next check_deferred.

    Of masks in parts no rank has what another has. That they are those of one choice is proved
    where their sparsity is (check_sparsity): their counts, and that no unit is kept by one rank and
    pruned by another, are of all ranks together.
    """
    if now.options.ranks.count > 1 and now.dual.placement.is_whole and now.dual.masks:
        own = mask_fingerprints(now.dual.masks)
        now.prints.append((now.state.position.step, now.options.ranks.gather(own)))


def check_deferred(now: Session) -> None:
    """Read what the device has recorded since the last time, on all ranks alike.

    Raises NotFinite where a loss was not finite, MasksDiffer where ranks have other masks.
    """
    for step, prints in now.prints:
        compare_fingerprints(list(now.dual.masks), prints, step)
    now.prints.clear()
    check_loss(now)


def check_loss(now: Session) -> None:
    """NotFinite where a loss was not finite on some rank."""
    stop_if_no_finite_loss(now.plan, now.options.ranks.gather(now.step.plain.first_bad).tolist())


# -- going back after a loss that was not finite: --on-nan rewind ------------------------------


MOST_REWINDS = 3


def rewind(now: Session, error: NotFinite) -> None:
    """Put `now` back. Raises the error where it was not asked for, or has been done too often."""
    if now.options.on_nan != "rewind":
        raise with_advice(error, now)
    at = now.state.position
    if len(at.rewinds) == MOST_REWINDS:
        raise NotFinite(
            now.plan,
            error.step,
            error.what,
            help=f"went back {MOST_REWINDS} times, to {at.rate_factor:g} of the recipe's rate; "
            f"{error.help}",
        )
    load_checkpoint(last_good(now.run.checkpoint, now.plan), now.state)
    after_loading(now)
    back = now.state.position
    # What was spent stays spent.
    back.seconds, back.trained, back.waited = at.seconds, at.trained, at.waited
    back.rewinds = [*at.rewinds, {"step": error.step, "what": error.what, "to": back.step}]
    now.step.plain.first_bad.fill_(-1)
    now.prints.clear()
    now.display.rewound(
        f"{error.message}: back to step {back.step:,}, on with {back.rate_factor:g} of the "
        "recipe's rate"
    )


def take_best(now: Session) -> bool:
    """End a run that is over: with `checkpoint = best` go back to the best one at full sparsity.

    Whether the weights are others now. The checkpoint that the folder holds is then the best one.
    """
    at, plan = now.state.position, now.plan
    if at.step < plan.num_steps and not is_over(plan, at):
        return False  # cut short by --max-steps
    best = best_of(now.run.checkpoint)
    goes_back = plan.train.checkpoint == "best" and best_step(plan, at) not in (None, at.step)
    if goes_back and not at.stopped:
        load_checkpoint(best, now.state)
        after_loading(now)
        back = now.state.position
        back.seconds, back.trained, back.waited = at.seconds, at.trained, at.waited
        back.watched, back.logged = at.watched, True
    changed = not at.stopped and now.state.position.step < plan.num_steps
    now.state.position.stopped = now.state.position.step < plan.num_steps
    if changed:
        save(now)
    return goes_back and changed


def with_advice(error: NotFinite, now: Session) -> NotFinite:
    """The error with what can be done about it."""
    more = (
        ""
        if now.saved is None
        else (
            f"\nthe checkpoint of step {now.saved:,} stays; --resume --on-nan rewind continues "
            "from a checkpoint with half the rate"
        )
    )
    return NotFinite(now.plan, error.step, error.what, help=f"{error.help}{more}")
