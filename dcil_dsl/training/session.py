"""One call of train, around its steps: starting, handing out batches, saving.

In:   a dual graph, a run folder and Options.
Out:  Session, what the loop needs at hand.
Not:  no step is taken here (trainer.py), and what a run has come to is told in result.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.loader import Loader
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.masking.recompute import compiled
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import is_refresh
from dcil_dsl.training.average import Average, start_average
from dcil_dsl.training.balance import WEIGHTS, start_weights
from dcil_dsl.training.checkpoint import (
    Position,
    State,
    load_checkpoint,
    save_checkpoint,
)
from dcil_dsl.training.fingerprint import compare_fingerprints, fingerprints
from dcil_dsl.training.finite import stop_if_no_finite_loss, stop_if_no_finite_weights
from dcil_dsl.training.forward import Forward, make_forward
from dcil_dsl.training.integrate import start_previous
from dcil_dsl.training.late_phase import average_copies, start_copies
from dcil_dsl.training.learner import Learner
from dcil_dsl.training.machine import REDUCE_OVERHEAD, Options, lay_out_weights, precision_of
from dcil_dsl.training.migrate import load_anyway
from dcil_dsl.training.optim import make_optimizer, rate_at
from dcil_dsl.training.patterns import pattern_words, why_computed_whole
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder
from dcil_dsl.training.sharding import make_scaler, shard
from dcil_dsl.training.ways import check_plan_ways, check_ways


@dataclass
class Session:
    """The state, and what it takes to make and to report a step.

    learner     outputs, losses and gradients of a batch
    first_bad   by loss of the plan, the step at which it was first not finite, else -1; it stays
                on the device, so that looking every step costs no wait
    prints      (step, fingerprints of the masks of every rank) not looked at yet
    stopping    whether the ranks have agreed to stop
    saved       the step of the checkpoint, None where there is none
    patterns    what was told of where 2:4 patterns are computed
    """

    plan: Plan
    dual: Dual
    options: Options
    run: RunFolder
    display: Display
    state: State
    average: Average
    scaler: torch.amp.GradScaler
    learner: Learner
    first_bad: Tensor
    prints: list[tuple[int, Tensor]] = field(default_factory=list)
    stopping: bool = False
    saved: int | None = None
    loss: Tensor | None = None  # of the latest batch
    fits: bool = False  # whether a batch was tried
    patterns: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)


def start_session(dual: Dual, run: RunFolder, options: Options, display: Display) -> Session:
    """Everything on its device, as at the start of a run or as the checkpoint has it."""
    plan, device, ranks = dual.plan, torch.device(options.device), options.ranks
    check_ways(options)
    check_plan_ways(plan, options)
    ranks.copy_first(dual.state_dict().values())
    shards = shard(dual, ranks, device) if options.shard else None
    dual.to(device)
    if options.channels_last and shards is None:
        lay_out_weights(dual)
    dual.refresh(0)  # before the first step too, the masks are the plan's
    optimizer = make_optimizer(plan.train.optimizer, dual.trainable())
    scores = {f"{name}_score" for name in dual.score_state}
    if plan.train.average is None:
        average = start_average(dual, plan.train.ema, besides=scores)
    else:
        average = average_copies(dual)
    sums = torch.zeros(len(plan.losses) + len(plan.paths), dtype=torch.float64, device=device)
    state = State(
        dual,
        optimizer,
        average.mean,
        sums,
        copied_masks(dual),
        Position(),
        shards,
        memory=start_previous(dual) | start_weights(plan, device) | start_copies(dual),
    )
    scaler = make_scaler(device, precision_of(plan, options) == "fp16", shards)
    if goes_on := options.resume and ranks.any(run.had_checkpoint):
        load = load_anyway if options.anyway else load_checkpoint
        load(run.checkpoint, state)
    if options.checkpoint_activations:
        recompute_activations(dual)
    eager = make_forward(dual, options, state.memory.get(WEIGHTS))
    forward = eager
    if options.compile:
        forward = _compiled(eager, plan, options)
    first_bad = torch.full((len(plan.losses),), -1, device=device)
    learner = Learner(dual, forward, eager, ranks, shards)
    now = Session(plan, dual, options, run, display, state, average, scaler, learner, first_bad)
    if goes_on:
        after_loading(now)
    # One of this plan, to go back to. Of an adopted one also because the folder has this plan now,
    # and no step may be left that would save another.
    if options.on_nan == "rewind" and not goes_on or goes_on and options.anyway:
        save(now)
    note_masks(now)
    tell_patterns(now)
    return now


def tell_patterns(now: Session) -> None:
    """Say where 2:4 patterns are computed, and say it again where that has changed."""
    words = pattern_words(why_computed_whole(now.dual, now.options))
    for text in words:
        if text not in now.patterns:
            now.display.note(text)
    now.patterns = words


def rate_of(now: Session) -> float:
    """The learning rate of the step that is being made."""
    at = now.state.position
    return rate_at(now.plan, at.step) * at.rate_factor


def after_loading(now: Session) -> None:
    """What a checkpoint says of things that are not in its State."""
    now.dual.forget_step()
    if not now.options.ranks.is_first:
        now.state.sums.zero_()  # they are of all ranks, and added up again when they are told
    if now.state.position.scaler:
        now.scaler.load_state_dict(now.state.position.scaler)
    now.saved = now.state.position.step


def loss_scale(now: Session) -> Tensor | None:
    """What the loss of the next step is multiplied by, on its device; None where it is not."""
    if not now.scaler.is_enabled():
        return None
    return now.scaler.scale(torch.ones((), device=now.options.device))


def _compiled(forward: Forward, plan: Plan, options: Options) -> Forward:
    """One graph for each phase and each set of open losses; moving masks need no new one.

    Recorded as CUDA graphs, which read masks and weights where they lie, it writes what it gives
    in the same place at each replay: what is returned are copies.
    """
    config = torch._dynamo.config
    num_graphs = 2 * (len(plan.phases) + 2 * len(plan.losses))
    if plan.train.balance is not None:  # which learns from each loss alone, too
        num_graphs += len(plan.phases) * len(plan.losses)
    config.recompile_limit = max(config.recompile_limit, num_graphs)  # beyond it all runs eagerly
    if options.compile_mode != REDUCE_OVERHEAD:
        return compiled(forward, dynamic=False)
    recorded = compiled(forward, dynamic=False, mode=REDUCE_OVERHEAD)

    def replay(images: Tensor, labels: Tensor, active: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        loss, sums = recorded(images, labels, active)
        return loss.clone(), sums.clone()

    return replay


def batches(now: Session, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of the epoch, with the time that is spent waiting for it put down.

    Where no batch comes, for an image that cannot be read or a worker that was killed, the steps
    so far are saved before the InputError goes on; of several ranks one alone cannot save, and in
    the middle of a step there is nothing to go on from: then the last checkpoint stands.
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


def _next_or_saved(now: Session, left: Iterator) -> tuple[Tensor, Tensor] | None:
    try:
        return next(left, None)
    except InputError as error:
        if now.options.ranks.count > 1 or now.state.position.batch % now.plan.train.accumulate:
            raise
        save(now)
        steps = count(now.state.position.step, "step is", "steps are")
        done = f"{steps} saved; --resume goes on from there"
        raise InputError(error.message, "\n".join(filter(None, (error.help, done)))) from error


def save(now: Session) -> None:
    """Write the checkpoint, unless what is in it is not finite or the masks are not the plan's."""
    look(now)
    at, ranks = now.state.position, now.options.ranks
    stop_if_no_finite_weights(
        now.plan, now.dual.trainable(), max(at.step - 1, 0), ranks, now.dual.named_buffers()
    )
    now.saved = at.step
    state = replace(now.state, sums=ranks.sum(now.state.sums))
    if not (ranks.is_first or state.shards):
        return
    at.scaler = now.scaler.state_dict()
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
    shards = now.state.shards
    buffers = {
        name: buffer
        for name, buffer in now.dual.named_buffers()
        if buffer.is_floating_point() and not (shards and shards.of(name))
    }
    means = [now.average.mean[name] for name in buffers if name in now.average.mean]
    now.options.ranks.average([*buffers.values(), *means])


def merge_scores(now: Session) -> None:
    """The scores of all ranks, where a mask is about to be made of them: means, as they add up.

    In parts they are of all ranks as they stand: the gradients that they take are.
    """
    if now.dual.parts is not None:
        return
    step = now.state.position.step
    if any(is_refresh(group, step) for group in now.plan.groups if group.kept_score is not None):
        now.options.ranks.average(now.dual.score_state.values())


def note_masks(now: Session) -> None:
    """Exchange the fingerprints of the masks, for the next look.

    Of masks in parts no rank has what another has. That they are those of one choice is proved
    where their sparsity is (check_sparsity): their counts, and that no unit is kept by one rank and
    pruned by another, are of all ranks together.
    """
    if now.options.ranks.count > 1 and now.dual.parts is None and now.dual.masks:
        own = fingerprints(now.dual.masks)
        now.prints.append((now.state.position.step, now.options.ranks.gather(own)))


def look(now: Session) -> None:
    """Read what the device has noted, on all ranks alike.

    Raises InputError where a loss was not finite, MasksDiffer where ranks have other masks.
    """
    for step, prints in now.prints:
        compare_fingerprints(list(now.dual.masks), prints, step)
    now.prints.clear()
    stop_if_no_finite_loss(now.plan, now.options.ranks.gather(now.first_bad).tolist())


def next_epoch(state: State) -> None:
    """Forget what was summed up over the epoch that is over."""
    at = state.position
    at.epoch, at.batch, at.examples = at.epoch + 1, 0, 0
    at.epoch_trained, at.epoch_waited, at.examples_by = 0.0, 0.0, {}
    state.sums.zero_()
    state.before = copied_masks(state.dual)


def copied_masks(dual: Dual) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in dual.masks.items()}
