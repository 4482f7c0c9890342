"""What is measured: accuracy, and sparsity against what was asked.

In:   outputs and labels; a dual graph and the number of steps it has trained.
Out:  counts and fractions; SparsityError where the masks do not hold what the plan asks.
Not:  nothing is printed or stored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.plan.schedule import keeps_at, last_refresh, sparsity_at


class SparsityError(Exception):
    """What was made does not hold the sparsity that the recipe asks: exit status 1."""


class Dual(Protocol):
    """What training needs of a compiled graph, beside its being an nn.Module."""

    plan: Plan
    masks: Mapping[str, Tensor]

    def begin_step(self, step: int) -> bool: ...
    def refresh(self, step: int) -> None: ...
    def trainable(self) -> list[tuple[str, nn.Parameter]]: ...


@dataclass(frozen=True)
class Sparsity:
    """Over all the groups of a plan together, as fractions and counts of weights."""

    asked: float
    measured: float
    num_kept: int
    num_weights: int


def num_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """How many of the labels (B,) are among the k largest logits (B, C); a scalar, not synced.

    Of labels that are shares of classes (B, K), as mixed examples have them, the largest counts.
    """
    if labels.is_floating_point():
        labels = labels.argmax(dim=1)
    if k == 1:
        return (logits.argmax(dim=1) == labels).sum()
    return (logits.topk(k, dim=1).indices == labels[:, None]).sum()


def masks_step(num_done: int) -> int:
    """The step whose masks are in force after `num_done` updates: the last one trained.

    Masks move before a step and never after the last one, so that every mask that is stored
    was trained with; a ramp that would end with the run is E305 of plan/allocate.py.
    """
    return max(num_done - 1, 0)


def check_sparsity(dual: Dual, step: int) -> Sparsity:
    """Compare the masks in force at `step` with the plan, group by group, to the weight.

    Raises SparsityError with every group (every layer of a uniform one) that differs.
    """
    wrong, asked, num_kept, num_weights = [], 0.0, 0, 0
    for group in dual.plan.groups:
        moved = last_refresh(group, step)
        for names, sizes, keep in _budgets(group, keeps_at(group, moved)):
            kept = sum(int(dual.masks[name].sum()) for name in names)
            if kept != keep:
                what = names[0] if len(names) == 1 else f"the {len(names)} layers of {group.rule}"
                wrong.append(f"{what}: {keep:,} of {sum(sizes):,} weights asked, {kept:,} kept")
            num_kept += kept
        asked += sparsity_at(group, moved) * sum(group.num_weights)
        num_weights += sum(group.num_weights)
    if wrong:
        fact = f"sparsity at step {step} is not what the recipe asks"
        raise SparsityError(f"{fact}: {'; '.join(wrong)}")
    if not num_weights:
        return Sparsity(0.0, 0.0, 0, 0)
    asked = round(asked / num_weights, 12)  # 0.9, where one group sums up to 0.8999999999999999
    return Sparsity(asked, 1 - num_kept / num_weights, num_kept, num_weights)


def _budgets(group: Group, keeps: tuple[int, ...]):
    if group.allocation == "global":
        return [(group.parameters, group.num_weights, keeps[0])]
    return [
        ((name,), (size,), keep)
        for name, size, keep in zip(group.parameters, group.num_weights, keeps, strict=True)
    ]
