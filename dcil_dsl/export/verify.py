"""Prove sparsity from the stored numbers themselves.

In:   tensors by name, and the promises of a plan; masks too, where a checkpoint has them.
Out:  Verdict: per layer and per group asked and counted, every fault, and its table as text.
Not:  no model is built, no mask is trusted to prove a zero: zeros are counted in the weights.

A kept weight may happen to be zero. So a file holds its promise where at most the allowed count
of weights is not zero (equally: at least the pruned count is zero); that there are fewer is told
and is not a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcil_dsl.export.artefact import Promise
from dcil_dsl.plan.wording import percent, shorten, table


@dataclass(frozen=True)
class LayerCount:
    """One pruned weight, counted. `allowed` None: the budget belongs to the group.

    num_revived  not zero although its mask prunes them; None where no mask is at hand
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
    """What was counted. It holds where there is no fault."""

    promises: tuple[Promise, ...]
    layers: list[LayerCount] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
    """Count the zeros of every promised weight. `masks`: True where a weight may be kept."""
    verdict = Verdict(tuple(promises))
    for index, promise in enumerate(verdict.promises):
        counted = _count_group(index, promise, tensors, masks or {}, verdict)
        verdict.layers += counted
        if len(counted) == len(promise.parameters):
            _judge(promise, counted, verdict)
    return verdict


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
        lines.append(f"group {index} ({promise.allocation}, {promise.rule}):")
        lines.append(
            f"  asked {percent(round(promise.asked, 6))}, measured {measured}; "
            f"{sum(promise.keeps):,} of {sum(promise.num_weights):,} weights may be kept, "
            f"{nonzero:,} are not zero"
        )
    lines += [f"note: {note}" for note in verdict.notes]
    lines += [f"fault: {fault}" for fault in verdict.faults]
    lines.append(
        "holds what was asked"
        if verdict.holds
        else f"does not hold what was asked: {len(verdict.faults)} "
        f"fault{'s' if len(verdict.faults) > 1 else ''}"
    )
    return "\n".join(lines) + "\n"


def _count_group(
    index: int,
    promise: Promise,
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    verdict: Verdict,
) -> list[LayerCount]:
    counted = []
    each = promise.keeps if promise.allocation == "uniform" else [None] * len(promise.parameters)
    for name, size, allowed in zip(promise.parameters, promise.num_weights, each, strict=True):
        if name not in tensors:
            verdict.faults.append(f"{name} is missing")
            continue
        weight = tensors[name]
        if weight.numel() != size:
            verdict.faults.append(f"{name} has {weight.numel():,} weights, the plan {size:,}")
            continue
        if not torch.isfinite(weight).all():
            verdict.faults.append(f"{name} holds numbers that are not finite")
        revived = None
        if name in masks:
            revived = int((weight[~masks[name]] != 0).sum())
            if revived:
                verdict.faults.append(f"{name}: {revived:,} pruned weights are not zero: revived")
        counted.append(LayerCount(name, index, size, int((weight != 0).sum()), allowed, revived))
    return counted


def _judge(promise: Promise, layers: list[LayerCount], verdict: Verdict) -> None:
    if promise.allocation == "uniform":
        budgets = [(layer.parameter, layer.num_nonzero, layer.allowed) for layer in layers]
    else:
        what = (
            f"the {len(layers)} layers of {promise.rule}"
            if len(layers) > 1
            else layers[0].parameter
        )
        budgets = [(what, sum(layer.num_nonzero for layer in layers), promise.keeps[0])]
    for what, nonzero, allowed in budgets:
        if nonzero > allowed:
            verdict.faults.append(
                f"{what}: {nonzero:,} weights are not zero, {allowed:,} allowed: "
                f"{nonzero - allowed:,} revived or never pruned"
            )
        elif nonzero < allowed:
            verdict.notes.append(
                f"{what}: {allowed - nonzero:,} of {allowed:,} kept weights happen to be zero"
            )


def _row(layer: LayerCount) -> tuple[str, ...]:
    zero = layer.num_weights - layer.num_nonzero
    revived = "-" if layer.num_revived is None else f"{layer.num_revived:,}"
    allowed = "-" if layer.allowed is None else f"{layer.allowed:,}"
    counts = (f"{n:,}" for n in (layer.num_weights, zero, layer.num_nonzero))
    sparsity = f"{100 * layer.sparsity:.2f}%"
    return (shorten(layer.parameter, 36), *counts, allowed, sparsity, revived)
