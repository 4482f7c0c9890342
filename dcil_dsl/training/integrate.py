"""One gradient made of several: Heun, Runge-Kutta, extrapolation, implicit steps.

In:   a dual graph, a function that puts the gradients of one batch in place, the learning rate.
Out:  the combined gradient in the parameters, for the optimizer's ordinary step.
Not:  no update: weights and masks are unchanged, to the bit.

With g(w) the routed gradient of the batch, a step follows dw/dt = -g(w) for a time h, the step's
learning rate, and its mean velocity is what the optimizer is given; words/step.py has the
rules.

Momentum, weight decay, penalties and clipping act on this one gradient. All evaluations see the
same batch, masks and random numbers; running statistics and scores change by the first alone.

Of players that move in turns, each moves by this rule while the other stays at w. One is what the
deployed path learns alone: kept weights, weights that no rule prunes, modules of all paths or of
the deployed one; the other the pruned weights and the twins of the other paths' modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.privatize import is_within, twin_names
from dcil_dsl.training.step import Batch, Step, Wrapper
from dcil_dsl.words.step import Integrator, total

T = TypeVar("T")
Gradients = Sequence[Tensor | None]  # by parameter; None where no gradient arrives


class IntegratedStep(Wrapper):
    """A step whose gradient an integrator makes of several evaluations."""

    def __init__(self, inner: Step, word: Integrator):
        super().__init__(inner, start_previous(inner.plain.dual))
        self.word = word

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        evaluate = partial(self._evaluate, batch)
        return integrate(self.plain.dual, batch.rate, evaluate, self.memory)

    def _evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        result = self.inner.gradients(batch)
        if self.plain.ranks.count > 1:  # they lie where the next evaluation puts its own
            for _, parameter in self.plain.dual.trainable():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()
        return result


def start_previous(dual: Dual) -> dict[str, Tensor]:
    """The memory before the first step: zeros in place of the gradients of the step before."""
    spec = dual.plan.train.integrator
    if spec is None or not spec.from_previous:
        return {}
    return {f"previous/{name}": torch.zeros_like(p) for name, p in _learning(dual)}


def integrate(dual: Dual, rate: float, evaluate: Callable[[], T], memory: dict[str, Tensor]) -> T:
    """What the first `evaluate` returned, with the combined gradient in the parameters' `.grad`.

    evaluate  forward and backward of the step's batch, with the step's random numbers; adds to
              the gradients, which are None before
    memory    of start_previous; it is updated in place
    """
    spec, field = dual.plan.train.integrator, _Field(dual, evaluate)
    assert spec is not None
    try:
        if spec.from_previous:
            before = [memory[f"previous/{name}"] for name, _ in field.named]
            combined = spec.combine(before, rate, field.at)
            for place, gradient in zip(before, combined, strict=True):
                place.zero_() if gradient is None else place.copy_(gradient)
        elif spec.players == "each":
            first, parts = field.at(0.0, None), players(dual)
            turns = [_follow(spec, field, rate, _only(part, first), part) for part in parts]
            combined = total(turns, [1.0] * len(parts))
        else:
            combined = _follow(spec, field, rate, field.at(0.0, None), None)
    finally:
        field.put_back()
    for (_, parameter), gradient in zip(field.named, combined, strict=True):
        parameter.grad = gradient
    return field.results[0]


class _Field(Generic[T]):
    """g at displaced weights. results: what the evaluations returned."""

    def __init__(self, dual: Dual, evaluate: Callable[[], T]):
        self.dual, self.evaluate, self.named = dual, evaluate, _learning(dual)
        self.start = [p.detach().clone() for _, p in self.named]
        self.results: list[T] = []
        self.buffers: dict[str, Tensor] | None = None

    def at(self, far: float, along: Gradients | None) -> Gradients:
        """g(w - far * along)."""
        with torch.no_grad():
            moves = along or [None] * len(self.start)
            for (_, p), start, move in zip(self.named, self.start, moves, strict=True):
                p.copy_(start if move is None else start.sub(move, alpha=far))
                p.grad = None
        self.results.append(self.evaluate())
        if self.buffers is None:
            self.buffers = copied_buffers(self.dual)
        gradients = [p.grad for _, p in self.named]
        for _, p in self.named:
            p.grad = None
        return gradients

    @torch.no_grad()
    def put_back(self) -> None:
        """Weights as before the step, buffers as after the first evaluation."""
        for (_, p), start in zip(self.named, self.start, strict=True):
            p.copy_(start)
        put_back_buffers(self.dual, self.buffers or {})


def _follow(
    spec: Integrator, field: _Field[T], h: float, first: Gradients, part: list[Tensor] | None
) -> Gradients:
    """The combined gradient of one player, or of all together where `part` is None."""

    def g(far: float, along: Gradients) -> Gradients:
        return _only(part, field.at(far, along))

    return _only(part, spec.combine(first, h, g))


def players(dual: Dual) -> list[list[Tensor]]:
    """For each of the two, which entries of each parameter are its own: masks, or one bool."""
    twins, masks = frozenset(twin_names(dual.plan)), dual.masks
    one = []
    for name, parameter in _learning(dual):
        mask = masks.get(name)
        if mask is None:
            # torch.tensor would wait for a copy.
            mask = torch.full((), not is_within(name, twins), device=parameter.device)
        one.append(mask)
    return [one, [~mask for mask in one]]


def _only(part: list[Tensor] | None, gradients: Gradients) -> Gradients:
    if part is None:
        return gradients
    return [
        None if g is None else torch.where(own, g, g.new_zeros(()))
        for own, g in zip(part, gradients, strict=True)
    ]


def _learning(dual: Dual) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in dual.trainable() if p.requires_grad]


# -- buffers -----------------------------------------------------------------------------------


def copied_buffers(dual: Dual) -> dict[str, Tensor]:
    """Copies by name."""
    masks = {id(mask) for mask in dual.masks.values()}
    return {n: b.clone() for n, b in dual.named_buffers() if id(b) not in masks}


@torch.no_grad()
def put_back_buffers(dual: Dual, copies: Mapping[str, Tensor]) -> None:
    """Restore copies in place, so that a compiled step keeps reading the same tensors."""
    for name, buffer in dual.named_buffers():
        if name in copies:
            buffer.copy_(copies[name])
