"""Late-phase weights: K copies of a few weights take turns, one per step; all other weights are
updated once per round of K steps.

In:   a dual graph, its optimizer, the gradients of a step.
Out:  the copy whose turn it is, in the graph; in `memory` the copies, their optimizer state and
      the summed gradients of the other weights; the mean of the copies in an Average.
Not:  which weights are copied (plan/resolve.py); the update itself is the optimizer's.

With w the shared weights, c_1 .. c_K the copies, and g the gradients of step t, whose copy is
k = t mod K counted from the start of the late phase,

    c_k <- U(c_k, dL/dc_k)                          in every step, with momentum of its own
    G   <- G + dL/dw
    w   <- U(w, r G),  G <- 0                       once in K steps; r is 1 (`sum`) or 1/K (`mean`)

and at the end the K copies are replaced by their mean. The copies start as
c + noise * rms(c) * normal numbers, without momentum. Von Oswald et al. 2021, arXiv:2007.12927,
algorithm 1; the start, the momentum and the order of the copies are those of the authors' code
(seijin-kobayashi/late-phase-weights), which has r = 1 on CIFAR and 1/K on ImageNet. There each copy
of a normalization has running statistics of its own; here they are one, over the steps of all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.extras.late_phase.settings import LateSettings
from dcil_dsl.training.average import Average
from dcil_dsl.training.optim import load_optimizer_state, optimizer_state
from dcil_dsl.training.step import Batch, Step, Wrapper

TURN = "late/turn"  # steps of the late phase that are done; -1 before it


class LatePhaseStep(Wrapper):
    """A step in which one copy moves, and once per round the shared weights."""

    def __init__(self, inner: Step):
        dual = inner.plain.dual
        super().__init__(inner, start_copies(dual))
        self.average = average_copies(dual)
        self.step = 0

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.step, plain = batch.step, self.plain
        if batch.masks_moved:
            forget_gathered(plain.dual, self.memory)
        if batch.is_first:
            take_turn(plain.dual, plain.optimizer, batch.step, self.memory)
        return self.inner.gradients(batch)

    def apply(self, rate: float) -> None:
        plain = self.plain
        gather(plain.dual, self.step, self.memory)
        self.inner.apply(rate)
        end_turn(plain.dual, plain.optimizer, self.step, self.memory, self.average)


def start_copies(dual: Dual) -> dict[str, Tensor]:
    """The memory before the first step: nothing where the recipe has no late phase.

    late/copy/<name>          (K, *shape), with /<entry> of the optimizer
    late/sum/<name>           G, late/has/<name> whether a gradient came in this round
    """
    late = _late_phase(dual)
    if late is None:
        return {}
    memory = {TURN: torch.tensor(-1)}
    for name, own, is_copied in _learning(dual, late):
        if not is_copied:
            memory[f"late/sum/{name}"] = torch.zeros_like(own)
            memory[f"late/has/{name}"] = torch.tensor(False)
            continue
        memory[f"late/copy/{name}"] = own.new_zeros((late.copies, *own.shape))
        for entry, like in dual.plan.train.optimizer.entries(own).items():
            memory[f"late/copy/{name}/{entry}"] = like.new_zeros((late.copies, *like.shape))
    return memory


def average_copies(dual: Dual) -> Average:
    """What is deployed of the copied weights: the weights themselves, until there are copies."""
    late = _late_phase(dual)
    learning = [] if late is None else _learning(dual, late)
    live = {name: parameter.detach() for name, parameter, is_copied in learning if is_copied}
    return Average(live, {name: weight.clone() for name, weight in live.items()})


@torch.no_grad()
def take_turn(
    dual: Dual, optimizer: torch.optim.Optimizer, step: int, memory: dict[str, Tensor]
) -> None:
    """Before the gradients of a step: put the copy whose turn it is into the graph."""
    late = _late_phase(dual)
    if late is None or step < late.start.step:
        return
    if memory[TURN] < 0:
        _make_copies(dual, late, memory)
    turn, entries = int(memory[TURN]) % late.copies, {}
    for name, own, is_copied in _learning(dual, late):
        if is_copied:
            own.copy_(memory[f"late/copy/{name}"][turn])
            for entry in dual.plan.train.optimizer.entries(own):
                entries[f"{name}/{entry}"] = memory[f"late/copy/{name}/{entry}"][turn]
    load_optimizer_state(optimizer, entries, dual.plan.train.optimizer)


@torch.no_grad()
def gather(dual: Dual, step: int, memory: dict[str, Tensor]) -> None:
    """Before the optimizer's step: add the gradients of the shared weights to those of the round.

    Within a round they become None: the optimizer then changes neither weight nor momentum.
    """
    late = _late_phase(dual)
    if late is None or step < late.start.step:
        return
    is_last = (int(memory[TURN]) + 1) % late.copies == 0
    for name, own, is_copied in _learning(dual, late):
        if is_copied:
            continue
        total, has = memory[f"late/sum/{name}"], memory[f"late/has/{name}"]
        if own.grad is not None:
            total.add_(own.grad)
            has.fill_(True)
        if not is_last or not has:
            own.grad = None
            continue
        gathered = total if late.gradients == "sum" else total / late.copies
        if own.grad is None:
            own.grad = gathered.clone()
        else:  # in place: it may be a view of what ranks exchange
            own.grad.copy_(gathered)
        total.zero_()
        has.fill_(False)


@torch.no_grad()
def end_turn(
    dual: Dual,
    optimizer: torch.optim.Optimizer,
    step: int,
    memory: dict[str, Tensor],
    average: Average,
) -> None:
    """After the optimizer's step: store the copy, and update the mean."""
    late = _late_phase(dual)
    if late is None:
        return
    if step < late.start.step:
        for name, mean in average.mean.items():
            mean.copy_(average.live[name])
        return
    turn, state = int(memory[TURN]) % late.copies, optimizer_state(optimizer)
    for name, own, is_copied in _learning(dual, late):
        if is_copied:
            memory[f"late/copy/{name}"][turn] = own
            for entry in dual.plan.train.optimizer.entries(own):
                memory[f"late/copy/{name}/{entry}"][turn] = state[f"{name}/{entry}"]
            average.mean[name].copy_(memory[f"late/copy/{name}"].mean(0))
    memory[TURN] += 1


@torch.no_grad()
def forget_gathered(dual: Dual, memory: dict[str, Tensor]) -> None:
    """Under `forget`, zero the summed gradients of pruned weights."""
    if _late_phase(dual) is None:
        return
    for group in dual.plan.groups:
        for name in group.parameters if group.forget else ():
            memory[f"late/sum/{name}"].masked_fill_(~dual.get_buffer(f"{name}_mask"), 0.0)


def _make_copies(dual: Dual, late: LateSettings, memory: dict[str, Tensor]) -> None:
    """Make the copies; their noise is drawn on the CPU, so that it is the same on every device."""
    chance = torch.Generator().manual_seed(dual.plan.train.seed)
    for name, own, is_copied in _learning(dual, late):
        if is_copied:
            copies = memory[f"late/copy/{name}"]
            copies.copy_(own)
            if late.noise:
                drawn = torch.randn(copies.shape, generator=chance).to(copies)
                copies.add_(late.noise * own.square().mean().sqrt() * drawn)
    memory[TURN].fill_(0)


def _late_phase(dual: Dual) -> LateSettings | None:
    word = dual.plan.train.average
    return word if isinstance(word, LateSettings) else None


def _learning(dual: Dual, late: LateSettings) -> Iterator[tuple[str, Parameter, bool]]:
    """The parameters that learn, by name, and whether each is one of those that are copied."""
    copied = frozenset(late.parameters)
    for name, parameter in dual.trainable():
        if parameter.requires_grad:
            yield name, parameter, name in copied
