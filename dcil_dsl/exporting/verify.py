"""Prove sparsity from the stored numbers themselves.

In:   tensors by name, and the promises of a plan; masks too, where a checkpoint has them.
Out:  Verdict: per layer and per group asked and counted, every fault, and its table as text.
Not:  no model is built, no mask is trusted to prove a zero: zeros are counted in the weights.

A kept weight may happen to be zero. So a file holds its promise where at most the allowed count
of weights is not zero (equally: at least the pruned count is zero); fewer are reported, and are not
a fault. A filter, a block or a head is zero if all of its weights are, else it counts in full.
Of an N:M pattern every group of m is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.artefact import Promise
from dcil_dsl.plan.group import budget_size, counted, kept_in_budget, members, unit_costs
from dcil_dsl.plan.text import percent, shorten, table
from dcil_dsl.training.sparsity import (
    Budget,
    below_filter_floors,
    count_units,
    pattern_counts,
    short_filters,
    tally_group,
)

PLAIN = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
)


@dataclass(frozen=True)
class LayerCount:
    """One pruned weight, counted.

    allowed      weights that may be other than zero; None where a budget of several layers, or
                 one that counts larger units, does not say
    num_revived  not zero although its mask prunes them; None without a mask
    """

    parameter: str
    group: int
    num_weights: int
    num_nonzero: int
    allowed: int | None = None
    num_revived: int | None = None

    @property
    def sparsity(self) -> float:
        return 1 - self.num_nonzero / self.num_weights if self.num_weights else 0.0


@dataclass
class Verdict:
    """The counts and faults of one file. It holds if there is no fault."""

    promises: tuple[Promise, ...]
    layers: list[LayerCount] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    budgets: list[tuple[int, Budget]] = field(default_factory=list)  # with the promise's number

    @property
    def holds(self) -> bool:
        return not self.faults

    @property
    def sparsity(self) -> float:
        """Of all pruned layers together, measured."""
        size = sum(layer.num_weights for layer in self.layers)
        return 1 - sum(layer.num_nonzero for layer in self.layers) / size if size else 0.0


def verify_tensors(
    tensors: Mapping[str, Tensor],
    promises: Iterable[Promise],
    masks: Mapping[str, Tensor] | None = None,
) -> Verdict:
    """Count the zeros of every promised weight. `masks`: True where a weight may be kept.

    Every other tensor must hold finite numbers.
    """
    verdict = Verdict(tuple(promises))
    tensors = {name: _in_a_plain_type(name, tensor) for name, tensor in tensors.items()}
    for index, promise in enumerate(verdict.promises):
        counted = _count_group(index, promise, tensors, masks or {}, verdict)
        verdict.layers += counted
        if len(counted) == len(promise.parameters):
            _judge(index, promise, tensors, verdict)
    named = {name for promise in verdict.promises for name in promise.parameters}
    for name, tensor in tensors.items():
        if name not in named:
            _look_at(name, tensor, verdict)
    return verdict


def _in_a_plain_type(name: str, tensor: Tensor) -> Tensor:
    """The numbers in a type that all of this computes in. InputError for one that no number has."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "without numbers" if tensor.is_meta else "sparse or quantised"
        raise InputError(
            f"the tensor `{name}` is {kind}: zeros are counted in plain tensors",
            help="save it dense: tensor.to_dense(), tensor.dequantize()",
        )
    if tensor.is_complex() or tensor.dtype in PLAIN:
        return tensor
    try:
        return tensor.to(torch.float64)
    except (NotImplementedError, RuntimeError):
        raise InputError(
            f"the tensor `{name}` is of type {_type(tensor)}, whose numbers cannot be read"
        ) from None


def _look_at(name: str, tensor: Tensor, verdict: Verdict) -> None:
    """A tensor of which no zeros are promised."""
    finite = torch.isfinite(tensor)
    if finite.all():
        return
    if tensor.is_complex() or not (tensor[~finite] == -torch.inf).all():
        verdict.faults.append(f"{name} holds numbers that are not finite")
    else:  # as constant masks of attention do
        verdict.notes.append(f"{name} holds -inf")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def show_verdict(verdict: Verdict) -> str:
    """The table by layer, the groups, notes, and one line that says whether it holds."""
    lines = []
    if verdict.layers:
        header = ("parameter", "weights", "zero", "not zero", "allowed", "sparsity", "revived")
        lines += table(header, [_row(layer) for layer in verdict.layers], "lrrrrrr") + [""]
    for index, promise in enumerate(verdict.promises):
        layers = [layer for layer in verdict.layers if layer.group == index]
        size, nonzero = (
            sum(getattr(layer, key) for layer in layers) for key in ("num_weights", "num_nonzero")
        )
        measured = percent(round(1 - nonzero / size, 6)) if size else "-"
        noun, asked = counted(promise), percent(round(promise.asked, 6))
        if promise.target.is_result:
            lines += [
                f"group {index} (threshold, {promise.rule}):",
                f"  no share is asked for, a threshold decides; measured {measured} of the weights",
            ]
            continue
        allowed = kept_in_budget(promise, promise.keeps)
        nm = promise.pattern
        pattern = f", {nm.n}:{nm.m}" if nm is not None else ""
        lines.append(f"group {index} ({promise.target.allocation}{pattern}, {promise.rule}):")
        if noun == "weights":
            lines.append(
                f"  asked {asked}, measured {measured}; {allowed:,} of "
                f"{count(sum(promise.num_weights), 'weight')} may be kept, "
                f"{count(nonzero, 'is', 'are')} not zero"
            )
            lines += _before_line(promise)
            continue
        budgets = [budget for number, budget in verdict.budgets if number == index]
        whole, kept = (sum(getattr(b, key) for b in budgets) for key in ("size", "kept"))
        share = percent(round(1 - kept / whole, 6)) if whole else "-"
        lines.append(
            f"  asked {asked} of {noun}, measured {share} of them and {measured} of the weights"
        )
        lines.append(
            f"  {allowed:,} of "
            f"{count(budget_size(promise), counted(promise, many=False))} may be kept, "
            f"{count(kept, 'is', 'are')}"
        )
    lines += [f"note: {note}" for note in verdict.notes]
    lines += [f"fault: {fault}" for fault in verdict.faults]
    lines.append(
        ("holds what was asked" if verdict.promises else "nothing was asked, and nothing is wrong")
        if verdict.holds
        else f"does not hold what was asked: {count(len(verdict.faults), 'fault')}"
    )
    return "\n".join(lines) + "\n"


def _before_line(promise: Promise) -> list[str]:
    before = promise.before
    if before is None:
        return []
    whole, kept = budget_size(before), kept_in_budget(before, before.keeps)
    return [f"  they lie in at most {kept:,} of {count(whole, counted(before, many=False))}"]


def _count_group(
    index: int,
    promise: Promise,
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    verdict: Verdict,
) -> list[LayerCount]:
    counted = []
    is_told = not promise.one_budget and promise.unit.single
    each = promise.keeps if is_told else [None] * len(promise.parameters)
    for name, size, allowed in zip(promise.parameters, promise.num_weights, each, strict=True):
        if name not in tensors:
            verdict.faults.append(f"{name} is missing")
            continue
        weight = tensors[name]
        if weight.numel() != size:
            has = count(weight.numel(), "weight")
            verdict.faults.append(f"{name} has {has}, the plan {size:,}")
            continue
        if not (weight.is_floating_point() or weight.is_complex()):
            verdict.faults.append(f"{name} is {_type(weight)}: no weight of a network is")
        if not torch.isfinite(weight).all():
            verdict.faults.append(f"{name} holds numbers that are not finite")
        revived = None
        if name in masks:
            revived = int((weight[~masks[name]] != 0).sum())
            if revived:
                are = count(revived, "pruned weight is", "pruned weights are")
                verdict.faults.append(f"{name}: {are} not zero: revived")
        counted.append(LayerCount(name, index, size, int((weight != 0).sum()), allowed, revived))
    return counted


def _judge(index: int, promise: Promise, tensors: Mapping[str, Tensor], verdict: Verdict) -> None:
    nonzero = {name: tensors[name] != 0 for name in promise.parameters}
    tally = tally_group(promise, promise.keeps, count_units(promise, nonzero))
    _judge_ceilings(promise, tally.units, verdict)
    for budget in tally.budgets:
        verdict.budgets.append((index, budget))
        what, noun = budget.what, counted(promise, many=False)
        if promise.target.is_result:
            continue
        more = budget.kept - budget.allowed
        if budget.allowed > budget.size:
            verdict.faults.append(
                f"{what}: the promise lets {budget.allowed:,} of {budget.size:,} {noun}s stay"
            )
        if more > 0:
            are = count(budget.kept, f"{noun} is", f"{noun}s are")
            verdict.faults.append(
                f"{what}: {are} not zero, {budget.allowed:,} allowed: "
                f"{more:,} revived or never pruned"
            )
        elif more < 0:
            fewer = f"{what}: {-more:,} of "
            verdict.notes.append(
                f"{fewer}{count(budget.allowed, f'kept {noun}')} "
                f"{'happens' if more == -1 else 'happen'} to be zero"
                if not promise.costs
                else f"{fewer}{count(budget.allowed, noun)} {'is' if more == -1 else 'are'} "
                "left over"
            )
    size, allowed = (sum(getattr(b, key) for b in tally.budgets) for key in ("size", "allowed"))
    if allowed > size * (1 - promise.asked) + len(promise.parameters):
        verdict.notes.append(
            f"{promise.rule}: {percent(promise.asked)} is asked, and floors let "
            f"{allowed:,} of {count(size, counted(promise, many=False))} stay"
        )
    if promise.pattern is not None:
        _judge_pattern(promise, nonzero, verdict)
    if promise.before is not None:
        _judge_before(promise.before, nonzero, verdict)
    if promise.filter_floors:
        _judge_filters(promise, nonzero, tally.budgets, verdict)


def _judge_ceilings(promise: Promise, units: tuple[int, ...], verdict: Verdict) -> None:
    """No layer holds more than its ceiling, no layers together more than their bound's."""
    limits = [
        (own[0], kept, ceiling)
        for own, kept, ceiling in zip(members(promise), units, promise.ceilings, strict=False)
    ]
    limits += [
        (f"the layers within {bound.name}", sum(units[i] for i in bound.members), bound.ceiling)
        for bound in promise.bounds
    ]
    noun = promise.unit.noun
    for what, kept, ceiling in limits:
        if kept > ceiling:
            are = count(kept, f"{noun} is", f"{noun}s are")
            verdict.faults.append(f"{what}: {are} not zero, the ceiling is {ceiling:,}")


def _judge_before(before: Promise, nonzero: Mapping[str, Tensor], verdict: Verdict) -> None:
    """No layer has nonzero weights in more whole units than are left before."""
    for budget in tally_group(before, before.keeps, count_units(before, nonzero)).budgets:
        if budget.kept > budget.allowed:
            noun = before.unit.noun
            are = count(budget.kept, f"{noun} is", f"{noun}s are")
            verdict.faults.append(
                f"{budget.what}: {are} not zero, {budget.allowed:,} of {budget.size:,} allowed"
            )


def _judge_filters(
    promise: Promise,
    nonzero: Mapping[str, Tensor],
    budgets: tuple[Budget, ...],
    verdict: Verdict,
) -> None:
    """A filter below its floor is a fault unless kept weights happen to be zero, and then only if
    its budget has fewer of those than its filters lack."""
    lacks = below_filter_floors(promise, nonzero)
    costs = dict(zip(promise.parameters, unit_costs(promise), strict=True))
    names = [promise.parameters] if promise.one_budget else members(promise)
    for own, budget in zip(names, budgets, strict=True):
        short = {name: lacks[name] for name in own if name in lacks}
        lacked = sum(int(missing.sum()) * costs[name] for name, (missing, _) in short.items())
        for name, (missing, least) in short.items():
            fact = f"{name}: {short_filters(missing, least)} that are not zero"
            if lacked > budget.allowed - budget.kept:
                verdict.faults.append(fact)
            else:
                verdict.notes.append(f"{fact}: kept weights happen to be zero")


def _judge_pattern(promise: Promise, nonzero: Mapping[str, Tensor], verdict: Verdict) -> None:
    """Every group of m for itself: the counts of a layer may be right and its pattern wrong."""
    pattern = promise.pattern
    assert pattern is not None
    counts = pattern_counts(promise, nonzero)
    for name, keep, size in zip(
        promise.parameters, promise.keeps, promise.num_weights, strict=True
    ):
        n = keep * pattern.m // size  # m before its schedule has begun, fewer on its way
        wrong = int((counts[name] > n).sum())
        if wrong:
            verdict.faults.append(
                f"{name}: {wrong:,} of {count(len(counts[name]), 'group')} of {pattern.m} "
                f"weights {'holds' if wrong == 1 else 'hold'} more than {n} that "
                "are not zero"
            )


def _row(layer: LayerCount) -> tuple[str, ...]:
    zero = layer.num_weights - layer.num_nonzero
    revived = "-" if layer.num_revived is None else f"{layer.num_revived:,}"
    allowed = "-" if layer.allowed is None else f"{layer.allowed:,}"
    counts = (f"{n:,}" for n in (layer.num_weights, zero, layer.num_nonzero))
    sparsity = f"{100 * layer.sparsity:.2f}%"
    return (shorten(layer.parameter, 36), *counts, allowed, sparsity, revived)
