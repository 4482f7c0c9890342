"""One path after the other: forward, backward, and its activations are gone: --paths-in-turn.

In:   a Dual; batches, the losses that are open, what a backward pass is.
Out:  the gradients of the batch, added to those of its step; loss and sums, as forward.py has them.
Not:  no other step: gradients, statistics and random numbers are those of the usual one, but for
      the rounding of sums.

Each term of the loss has a gradient on one path, as KL leaves its teacher alone. So a path needs
nothing of the others but the logits of its teachers:

    no KL, or the teachers first     forward A, backward A, forward B, backward B
    KL both ways                     forward A without gradients, forward B, backward B,
                                     forward A, backward A

The one more forward of A draws the random numbers that the first has drawn, reads the statistics
that the first has read, and notes nothing. Where the first forwards can be in any order, it is
left out if one order has all teachers first. What the paths share (views of weights, layers in
front) gets its gradient in the last backward pass, which goes on to it and takes along what has
arrived before: routing and scores are those of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.turns import Part, Turns, cut_turns
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.masking.recompute import compiled
from dcil_dsl.masking.redraw import draw_again, random_state
from dcil_dsl.plan.plan import WeightedLoss
from dcil_dsl.training.forward import sums_of, weigh
from dcil_dsl.training.machine import OWN_STEPS, Options, autocast


@dataclass(frozen=True)
class Turn:
    """A forward of a path. learns: with its backward pass; is_again: it has run before."""

    path: str
    learns: bool
    is_again: bool = False


def order_turns(
    paths: Mapping[str, float], teachers: Mapping[str, set[str]], is_ordered: bool
) -> tuple[Turn, ...]:
    """The turns of a step, with as few forwards as there can be.

    paths       in their order, with the cost of a forward of each
    teachers    of each path that learns, the other paths whose logits it needs
    is_ordered  the first forwards have to be in that order
    """
    waiting, run, turns = list(paths), set(), []
    while waiting:
        able = [path for path in waiting if teachers.get(path, set()) <= run]
        if is_ordered:
            path = waiting[0]
        else:  # of a circle the cheapest runs twice
            path = able[0] if able else min(waiting, key=paths.__getitem__)
        turns.append(Turn(path, learns=path in teachers and path in able))
        waiting.remove(path)
        run.add(path)
    late = [t.path for t in turns if t.path in teachers and not t.learns]
    return (*turns, *(Turn(path, learns=True, is_again=True) for path in late))


class InTurn:
    """The step of a Dual, path by path. InputError where the plan has none such."""

    def __init__(self, dual: Dual, options: Options):
        self.dual, self.options, self.plan = dual, options, dual.plan
        self.eager: dict[int, Turns] = {}
        own = next((x for x in OWN_STEPS if getattr(self.plan.train, x) is not None), None)
        if own is not None:
            raise InputError(
                f"--paths-in-turn does not go with `{own}` of the recipe's `train`",
                help="leave one of them out",
            )
        for loss in self.plan.losses:
            if len(loss.term.paths) > 1 and not loss.term.only_first_learns:
                raise InputError(
                    f"--paths-in-turn: `{loss.name}` may have a gradient on more than one path",
                    help="leave it out",
                )
        for index, phase in enumerate(self.plan.phases):
            self.eager[index] = turns = cut_turns(dual, index)
            open_ones = tuple(
                i for i, loss in enumerate(self.plan.losses)
                if {*_paths_of(loss)} - {None} <= {*phase.paths}
            )  # fmt: skip
            for turn in self._order(turns, open_ones):
                if turn.is_again and turns.parts[turn.path].is_once:
                    raise InputError(
                        f"--paths-in-turn would run path `{turn.path}` twice a step, and a module "
                        "that stays whole may not be the same the second time",
                        help="leave it out, or out of the recipe one of the KLs between the paths",
                    )
                if turn.is_again and turns.parts[turn.path].draws and options.compile:
                    raise InputError(
                        f"--paths-in-turn would run path `{turn.path}` twice a step, and what "
                        "--compile makes of it may draw other random numbers the second time",
                        help="leave one of the two out",
                    )
        self.full = self.eager
        if options.compile:
            self.full = {index: _compiled(turns) for index, turns in self.eager.items()}

    def _order(self, turns: Turns, active: tuple[int, ...]) -> tuple[Turn, ...]:
        teachers: dict[str, set[str]] = {}
        for i in active:
            path, teacher = _paths_of(self.plan.losses[i])
            teachers.setdefault(path, set()).update({teacher} - {None, path})
        costs = {path.name: path.cost for path in self.plan.paths if path.name in turns.parts}
        return order_turns(costs, teachers, turns.is_ordered)

    def learn(
        self, images: Tensor, labels: Tensor, active: tuple[int, ...],
        backward: Callable[[Tensor], None], is_short: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(loss, sums) of a batch, whose gradients `backward` has added to those of its step."""
        dual, plan = self.dual, self.plan
        turns = (self.eager if is_short else self.full)[dual.phase]
        with autocast(plan, self.options):
            made = turns.head(dual, *dual.inputs(images))
        made = dict(zip(turns.names, made, strict=True))
        ends = {name: pytree.tree_map(_end, value) for name, value in made.items()}
        outputs: dict[str, object] = {}
        terms: dict[int, Tensor] = {}
        order = self._order(turns, active)
        before = {turn.path: None for turn in order if turn.is_again}
        last = [turn for turn in order if turn.learns][-1]
        for turn in order:
            part = turns.parts[turn.path]
            is_cut = turn.learns and turn is not last
            given = [(ends if is_cut else made)[name] for name in part.reads]
            if turn.path in before and not turn.is_again:
                before[turn.path] = _Before(dual, part)
            again = before[turn.path].once_more(given) if turn.is_again else nullcontext(given)
            with torch.set_grad_enabled(turn.learns), autocast(plan, self.options), again as given:
                output = part.forward(dual, *given)
            if turn.learns:
                own = [i for i in active if _paths_of(plan.losses[i])[0] == turn.path]
                seen = {**outputs, turn.path: output}
                total, values = weigh(plan, seen, labels, own)
                terms |= values
                if turn is last:
                    total = total + _arrived(made, ends)
                    ends.clear()
                if turn is order[-1]:
                    made.clear()  # views go as soon as the backward pass is through with them
                del given
                backward(total)
                del total  # with it go the activations
            outputs[turn.path] = pytree.tree_map(_detached, output)
            del output
        loss = sum(plan.losses[i].coefficient * terms[i] for i in active)
        return loss, sums_of(plan, outputs, labels, terms)


class _Before:
    """The buffers that a path's forward changes and the random numbers, before it runs."""

    def __init__(self, dual: Dual, part: Part):
        self.dual = dual
        self.values = {name: dual.get_buffer(name).clone() for name in part.keeps}
        self.state = random_state() if part.draws else None

    @contextmanager
    def once_more(self, given: list) -> Iterator[list]:
        """What the part is given the second time. What it changes then are the values kept here."""
        places = {}
        for name, value in self.values.items():
            owner, _, leaf = name.rpartition(".")
            buffers = self.dual.get_submodule(owner)._buffers
            places[id(buffers[leaf])] = (buffers, leaf, buffers[leaf], value)
        state = random_state() if self.state is not None else None
        for buffers, leaf, _, value in places.values():
            buffers[leaf] = value
        try:
            if state is not None:
                draw_again(self.state)
            yield [places[id(x)][3] if id(x) in places else x for x in given]
        finally:
            for buffers, leaf, own, _ in places.values():
                buffers[leaf] = own
            if state is not None:
                draw_again(state)


def _compiled(turns: Turns) -> Turns:
    """Head and parts by themselves; the losses stay as they are."""
    parts = {
        path: replace(part, forward=compiled(part.forward, dynamic=False))
        for path, part in turns.parts.items()
    }
    return replace(turns, head=compiled(turns.head, dynamic=False), parts=parts)


def _paths_of(loss: WeightedLoss) -> tuple[str, str | None]:
    """Whose term it is, and the other one whose logits it needs."""
    own, *others = loss.term.paths
    return own, (others[0] if others else None)


def _end(value: object) -> object:
    """The same numbers, at which a path's backward pass ends; parameters are such already."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or not value.requires_grad:
        return value
    return value.detach().requires_grad_()


def _detached(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


def _arrived(made: Mapping[str, object], ends: Mapping[str, object]) -> Tensor | float:
    """A zero whose backward pass gives the values of `made` what has arrived at their ends."""
    both = zip(pytree.tree_leaves(made), pytree.tree_leaves(ends), strict=True)
    pairs = [(value, end.grad) for value, end in both if value is not end]
    return sum(_Arrived.apply(v, gradient) for v, gradient in pairs if gradient is not None)


class _Arrived(torch.autograd.Function):
    """0, with a gradient of `values` that is there already, scaled as the loss was."""

    @staticmethod
    def forward(ctx, values, gradient):
        ctx.gradient = gradient
        return values.new_zeros(())

    @staticmethod
    def backward(ctx, scale):
        gradient, ctx.gradient = ctx.gradient, None  # so that it can go when it was used
        return gradient, None
