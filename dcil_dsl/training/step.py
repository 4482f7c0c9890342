"""The step: `gradients` of each of its batches, then `apply`.

In:   a dual graph, its optimizer, Options; batches.
Out:  Step, what the loop calls; GradientStep, which eager, compiled and data-parallel runs use;
      Wrapper, the base of what changes a step; NotFinite where numbers are not.
Not:  no formula of a loss (losses.py), no integrator (integrate.py), no epoch (trainer.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.side_effects import seed_generators
from dcil_dsl.plan.plan import Plan
from dcil_dsl.tasks import IMAGES, Task
from dcil_dsl.training.average import Average, not_averaged, start_average, update_average
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.losses import make_forward, refuse_constant
from dcil_dsl.training.machine import Options, precision_of
from dcil_dsl.training.optim import forget_state, set_rate
from dcil_dsl.words.step import Mirror

# What older versions of torch call broadcast_buffers.
SYNC_BUFFERS = "forward_sync_buffers"
if SYNC_BUFFERS not in signature(DistributedDataParallel).parameters:
    SYNC_BUFFERS = "broadcast_buffers"


@dataclass(frozen=True)
class Batch:
    """One batch of a step, on this rank.

    inputs, targets  what the model is called with, what its outputs are compared with
    count        examples of the batch on this rank
    step         the step it belongs to, counted from 0
    seed         of the random numbers of the step
    losses       the places in plan.losses of the terms to minimize
    rate         the learning rate of the step
    is_first, is_last  its place in the step
    size, total  examples of the batch and of the whole step, over all ranks
    masks_moved  whether the step has new masks, or the optimizer begins anew
    weights      of each of plan.losses, where something balances them
    """

    inputs: Inputs
    targets: Any
    count: int
    step: int
    seed: int
    losses: tuple[int, ...]
    rate: float
    is_first: bool = True
    is_last: bool = True
    size: int = 0
    total: int = 0
    masks_moved: bool = False
    weights: Tensor | None = None


class Step(ABC):
    """What the loop calls, and what the checkpoint saves of it.

    memory   tensors that later steps need, by name; changed in place
    average  what is evaluated and deployed in place of the weights
    """

    memory: dict[str, Tensor]
    average: Average

    @property
    @abstractmethod
    def plain(self) -> GradientStep:
        """The step without what is wrapped around it."""

    @abstractmethod
    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch to those of its step, which the first batch clears.

        Returns the loss and the sums of the batch (losses.sums_of).
        """

    @abstractmethod
    def apply(self, rate: float) -> None:
        """Update the weights by the gradients of the step."""

    def facts(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of the step."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the step is computed."""
        return ()

    def dense(self) -> Collection[str]:
        """The weights of a 2:4 pattern that this machine multiplies by as a whole."""
        return ()


class Wrapper(Step):
    """A step around another one, which does all that the subclass does not."""

    def __init__(self, inner: Step, memory: Mapping[str, Tensor] | None = None):
        self.inner = inner
        self.memory = inner.memory | dict(memory or {})
        self.average = inner.average

    @property
    def plain(self) -> GradientStep:
        return self.inner.plain

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.inner.gradients(batch)

    def apply(self, rate: float) -> None:
        self.inner.apply(rate)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def notes(self) -> tuple[str, ...]:
        return self.inner.notes()

    def dense(self) -> Collection[str]:
        return self.inner.dense()


class GradientStep(Step):
    """One forward and backward pass a batch, under DistributedDataParallel on several ranks.

    The losses are computed inside the module that is wrapped, so that the parameters no open loss
    reaches are known. Which these are changes with the phase and with the losses' windows only:
    each such stretch of steps has a wrapper of its own, whose graph stands still (`static_graph`).
    Buffers stay each rank's own: masks are equal by computation, which is proved at every refresh,
    and running statistics are averaged when they are read (session.merge_ranks). In stretches of a
    few steps DistributedDataParallel would be built anew for each: there the mean is taken when
    the last backward pass is done.

    What lies next to what in its buckets changes after its first backward pass, which a resumed
    run has at another step. On a CPU, where it is to end with the same bits, means are therefore
    taken by exchange_in_order, wherever their rounding could tell.

    first_bad  by loss of the plan, the step at which it was first not finite, else -1; it stays
               on the device, so that recording it costs no wait
    """

    def __init__(
        self,
        dual: Dual,
        optimizer: torch.optim.Optimizer,
        options: Options,
        task: Task = IMAGES,
    ):
        device, plan = torch.device(options.device), dual.plan
        self.dual, self.optimizer, self.options, self.ranks = (
            dual,
            optimizer,
            options,
            options.ranks,
        )
        self.memory, self.average = {}, Average({}, {})
        self.module = LossModule(dual, options, task)
        self.scaler = self.make_scaler(device, precision_of(plan, options) == "fp16")
        self.first_bad = torch.full((len(plan.losses),), -1, device=device)
        windows = [phase.window for phase in plan.phases] + [loss.window for loss in plan.losses]
        alternates = any(window.every > 1 for window in windows)
        self.wraps = self.ranks.count > 1 and not alternates
        self.wrapped: DistributedDataParallel | None = None
        self.stretch: tuple[object, ...] | None = None
        self.is_fresh = self.closes = True
        self.is_unscaled = False

    @property
    def plain(self) -> GradientStep:
        return self

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.is_first:
            # The same numbers at every evaluation of one step.
            seed_generators(batch.seed, self.dual.original)
            self.is_unscaled = False
            if batch.masks_moved:
                forget_state(self.optimizer, self.dual)
            self.optimizer.zero_grad(set_to_none=True)
        # Of a batch that is not divided every rank has a copy.
        copies = self.ranks.count if batch.count == batch.size else 1
        # The mean over the step; of what the ranks have, they take the mean.
        share = self.ranks.count * batch.count / (copies * batch.total)
        loss, sums = self.differentiate(batch, share)
        bad = ~sums[: len(self.dual.plan.losses)].isfinite() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, batch.step, self.first_bad)
        return loss.detach(), sums if copies == 1 else sums / copies

    def differentiate(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        """(loss, sums) of a batch, with the gradients of `share` times the loss added."""
        if not self.wraps:
            loss, sums = self.forward(batch)
            self.backward(loss, share)
            if batch.is_last:
                self.exchange()
            return loss, sums
        wrapped = self._wrapped((self.dual.phase, batch.losses))
        # What its no_sync() sets. The first backward of a static graph must not be without it; the
        # mean of means that an early exchange makes is the same mean, but for rounding.
        self.closes = batch.is_last
        wrapped.require_backward_grad_sync = batch.is_last or self.is_fresh
        loss, sums = wrapped(*self._given(batch))
        self.backward(loss, share)
        self.is_fresh = False
        return loss, sums

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, sums = self.module(*self._given(batch))
        return loss, sums

    def backward(self, loss: Tensor, share: float) -> None:
        refuse_constant(loss)
        scaled: Any = self.scaler.scale(loss if share == 1 else share * loss)
        scaled.backward()

    def exchange(self) -> None:
        """The mean over the ranks of the gradients of a step."""
        gradients = (parameter.grad for _, parameter in self.dual.trainable())
        self.ranks.average(gradient for gradient in gradients if gradient is not None)

    def apply(self, rate: float) -> None:
        set_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.is_unscaled = False

    def unscale(self) -> None:
        """Take the scale of fp16 out of the gradients, once per step."""
        if not self.is_unscaled:
            self.scaler.unscale_(self.optimizer)
            self.is_unscaled = True

    def clip(self, largest: float) -> None:
        """Scale the gradients so that their norm is `largest` at most."""
        clip_grad_norm_([parameter for _, parameter in self.dual.trainable()], largest)

    def loss_scale(self) -> Tensor | None:
        """What the loss of the next step is multiplied by, on its device; None without fp16."""
        if not self.scaler.is_enabled():
            return None
        return self.scaler.scale(torch.ones((), device=self.first_bad.device))

    def make_scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device.type, enabled=enabled)

    def _given(self, batch: Batch) -> tuple[object, ...]:
        is_short = batch.size < self.dual.plan.data.batch_size
        args, kwargs = batch.inputs.args, batch.inputs.kwargs
        return args, kwargs, batch.targets, batch.count, batch.losses, batch.weights, is_short

    def _wrapped(self, stretch: tuple[object, ...]) -> DistributedDataParallel:
        if stretch != self.stretch or self.wrapped is None:
            self.stretch, self.is_fresh = stretch, True
            self.wrapped = None  # the old one's buckets go first
            settings: dict[str, Any] = {SYNC_BUFFERS: False}
            self.wrapped = DistributedDataParallel(
                self.module,
                static_graph=True,
                init_sync=False,
                gradient_as_bucket_view=True,
                **settings,
            )
            on_host = next(self.dual.parameters()).device.type == "cpu"
            if on_host and (self.ranks.count > 2 or self.dual.plan.train.accumulate > 1):
                self.wrapped.register_comm_hook(self, exchange_in_order)
        return self.wrapped


class LossModule(nn.Module):
    """Outputs, losses and counts as one module, which DistributedDataParallel can wrap.

    A short last batch runs eagerly, as it is not worth a compilation.
    """

    def __init__(self, dual: Dual, options: Options, task: Task):
        super().__init__()
        self.dual = dual
        self.short, self.full = make_forward(dual, options, task)

    def forward(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: Any,
        count: int,
        losses: tuple[int, ...],
        weights: Tensor | None,
        is_short: bool,
    ) -> tuple[Tensor, Tensor]:
        run = self.short if is_short else self.full
        return run(args, kwargs, targets, count, losses, weights)


def exchange_in_order(step, bucket):  # type: ignore[no-untyped-def]
    """The mean of a bucket of gradients, in the order of the ranks; their own where no batch of the
    step is the last. Without annotations of types, which torch would compare as text."""
    gradients = bucket.buffer()
    if step.closes:
        gradients.copy_(step.ranks.mean_in_order(gradients))
    exchanged: Future[Tensor] = Future()
    exchanged.set_result(gradients)
    return exchanged


# -- batches of a step -------------------------------------------------------------------------


@dataclass(frozen=True)
class MicroBatch:
    """One batch of a step. size and total are its and the step's examples, over all ranks."""

    is_first: bool
    is_last: bool
    size: int
    total: int


def part_of_step(plan: Plan, loader: BatchLoader, batch: int) -> MicroBatch:
    """Steps are `accumulate` batches each, from the first of an epoch; its last may have fewer.

        total = sum of the sizes of the step's batches

    The step's loss is the mean over `total` examples, however they are parted.
    """
    size, num = plan.data.batch_size, loader.num_examples
    start = batch - batch % plan.train.accumulate
    stop = min(start + plan.train.accumulate, loader.num_batches)
    return MicroBatch(
        is_first=batch == start,
        is_last=batch == stop - 1,
        size=min(size, num - batch * size),
        total=min(stop * size, num) - start * size,
    )


# -- wrappers ----------------------------------------------------------------------------------


class RegularizedStep(Wrapper):
    """Clips the gradient of a step, then adds the penalties to it, as weight decay is added."""

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        result, plain = self.inner.gradients(batch), self.plain
        if batch.is_last:
            plain.unscale()
            if plain.dual.plan.train.clip is not None:
                plain.clip(plain.dual.plan.train.clip)
            plain.dual.add_penalties(batch.step)
        return result


class MirroredStep(Wrapper):
    """Multiplies the weights after the optimizer's step, `mirror = word`; biases and norms stay."""

    def __init__(self, inner: Step, word: Mirror):
        super().__init__(inner)
        self.word = word

    @torch.no_grad()
    def apply(self, rate: float) -> None:
        self.inner.apply(rate)
        for group in self.plain.optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.dim() >= 2:
                    weight.mul_(self.word.factor(weight, weight.grad, group["lr"]))


class AveragedStep(Wrapper):
    """Keeps an exponential moving average of the weights, `ema = decay`."""

    def __init__(self, inner: Step, decay: float):
        super().__init__(inner)
        dual, self.decay = self.plain.dual, decay
        self.average = start_average(dual, decay, exclude=not_averaged(dual))

    def apply(self, rate: float) -> None:
        self.inner.apply(rate)
        update_average(self.average, self.decay)


# -- numbers that are not finite ---------------------------------------------------------------


BROKEN = "not_finite"  # next to accuracies: how many examples have no finite output
ADVICE = "lower the learning rate, or give the recipe a `clip` or a longer `warmup`"
AT_FIRST = (
    "nothing has been learned yet: look at the data, their class numbers, mean and deviation, and "
    "at the weights that the run starts from"
)
IN_EVALUATION = (
    "in evaluation, norms use their running statistics: look at those, and at the weights; or "
    f"{ADVICE}"
)


class NotFinite(InputError):
    """`what` was not a finite number at `step`."""

    def __init__(self, plan: Plan, step: int, what: str, help: str = ADVICE):
        self.step, self.what = step, what
        epoch = step // plan.steps_per_epoch + 1
        super().__init__(f"the {what} is not a finite number at step {step} (epoch {epoch})", help)


def stop_if_no_finite_loss(plan: Plan, first_bad: Sequence[Sequence[int]]) -> None:
    """NotFinite for the first loss that was NaN or infinite.

    first_bad  by rank and loss of the plan, the step at which that was so first, -1 where it was
               finite: however many steps ago it was noted, the first of them is named
    """
    bad = [
        (step, loss.name)
        for steps in first_bad
        for loss, step in zip(plan.losses, steps, strict=True)
        if step >= 0
    ]
    if bad:
        step, name = min(bad)
        raise NotFinite(plan, step, f"loss `{name}`", ADVICE if step else AT_FIRST)


def stop_if_no_finite_outputs(
    plan: Plan, accuracies: Mapping[str, Mapping[str, float]], step: int, num_examples: int
) -> None:
    """NotFinite for the first path with an output that was not. `step`: of the last update."""
    for path, accuracy in accuracies.items():
        if broken := accuracy.get(BROKEN):
            of = f"{broken:,} of {count(num_examples, 'held-out example')}"
            raise NotFinite(plan, step, f"output of path `{path}` for {of}", IN_EVALUATION)


def stop_if_no_finite_weights(
    plan: Plan,
    named: Iterable[tuple[str, Tensor]],
    step: int,
    ranks: Ranks = Ranks(),
    buffers: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """NotFinite for the first weight that is not, on all ranks alike. `step`: of the last update.

    A gradient can be infinite under a finite loss; nothing says so before the next step. Statistics
    can be NaN under finite losses to the end. Of buffers, those with an infinite number are let
    pass: constants have them.
    """
    named, buffers = list(named), [(n, t) for n, t in buffers if t.is_floating_point()]
    names = [name for name, _ in named + buffers]
    finite = torch.stack(
        [tensor.detach().isfinite().all() for _, tensor in named]
        + [~tensor.isnan().any() for _, tensor in buffers]
    )
    broken = (~ranks.gather(finite.to(torch.uint8)).bool().all(dim=0)).nonzero().flatten().tolist()
    if broken:
        raise NotFinite(plan, step, f"weight `{names[broken[0]]}`")
