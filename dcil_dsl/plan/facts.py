"""Counts derived from a Plan: per layer, per group, per phase, in all.

In:   a Plan.
Out:  Facts, which `dcil plan --json` prints under the key `facts` and show.py as text.
Not:  nothing is measured: arithmetic is that of the plan, bytes are those of its masks.
"""

from __future__ import annotations

import json

from dcil_dsl.plan.cost import phase_steps, step_cost, training_cost
from dcil_dsl.plan.group import (
    Group,
    PlanRecord,
    budget_size,
    counted,
    kept_in_budget,
    unit_costs,
    weights_of_unit,
)
from dcil_dsl.plan.records import PlanFields
from dcil_dsl.plan.schedule import (
    keeps_at,
    last_refresh,
    num_refreshes,
    reached_at,
    sparsity_at,
)

CURVE_POINTS = 100


class LayerFacts(PlanRecord):
    """One layer of Plan.layers, in its order.

    macs_share  of all that are counted, 0..1; None where they are not counted
    num_kept    weights that are not zero after the last step; None where the layer shares its
                budget with others, so that the weights themselves decide
    sparsity    1 - num_kept / num_weights, None likewise
    private     whether each path has the layer for itself
    """

    parameter: str
    num_weights: int
    macs_share: float | None
    num_kept: int | None
    sparsity: float | None
    private: bool


class GroupFacts(PlanRecord):
    """One group of Plan.groups, in its order.

    counts                  what the budget counts: "weights", "filters", ...
    budget, kept            of all its layers, in what it counts, before and after the run; kept
                            and sparsity are None, and the curve is empty, where a threshold decides
    reached, last_refresh   the steps at which the target is first requested, masks last change
    num_refreshes           how often masks are made in the whole run
    curve                   (step, sparsity in force), at most a hundred points
    """

    rule: str
    counts: str
    budget: int
    kept: int | None
    sparsity: float | None
    reached: int
    last_refresh: int
    num_refreshes: int
    curve: tuple[tuple[int, float], ...]


class PhaseFacts(PlanRecord):
    """One phase of Plan.phases. cost: a step's arithmetic in dense steps, at most, 2:4 patterns as
    sparse tensor cores multiply by them where `compute = kept` asks for it."""

    start: int
    stop: int
    paths: tuple[str, ...]
    cost: float


class Facts(PlanRecord):
    """training_cost: the whole run's arithmetic in dense runs, at most, counted as the phases' is.
    mask_bytes: one byte per prunable weight while training; packed_mask_bytes: one bit, as masks
    can be stored; score_bytes: four per weight whose score is kept from step to step."""

    layers: tuple[LayerFacts, ...]
    groups: tuple[GroupFacts, ...]
    phases: tuple[PhaseFacts, ...]
    num_weights: int
    num_prunable: int
    training_cost: float
    mask_bytes: int
    packed_mask_bytes: int
    score_bytes: int


def count_facts(plan: PlanFields) -> Facts:
    """The printed facts of a plan that it does not store."""
    groups = tuple(_group_facts(plan, group) for group in plan.groups)
    return Facts(
        layers=layer_facts(plan),
        groups=groups,
        phases=tuple(
            PhaseFacts(
                start=phase.window.start,
                stop=phase.window.start + phase_steps(plan, phase),
                paths=phase.paths,
                cost=step_cost(plan, phase),
            )
            for phase in plan.phases
        ),
        num_weights=sum(layer.num_weights for layer in plan.layers),
        num_prunable=sum(sum(group.num_weights) for group in plan.groups),
        training_cost=training_cost(plan),
        mask_bytes=mask_bytes(plan),
        packed_mask_bytes=sum(-(-size // 8) for g in plan.groups for size in g.num_weights),
        score_bytes=score_bytes(plan),
    )


def plan_and_facts_json(plan: PlanFields) -> str:
    """What `dcil plan --json` prints: Plan.to_json with one more key, `facts`."""
    values = plan.model_dump(mode="json") | {"facts": count_facts(plan).model_dump(mode="json")}
    return json.dumps(values, indent=2)


def layer_facts(plan: PlanFields) -> tuple[LayerFacts, ...]:
    """See LayerFacts."""
    macs = sum(layer.macs or 0 for layer in plan.layers)
    kept: dict[str, int | None] = {}
    for group in plan.groups:
        kept |= kept_at(group, last_step(plan))
    facts = []
    for layer in plan.layers:
        num_kept = kept.get(layer.parameter, layer.num_weights)
        facts.append(
            LayerFacts(
                parameter=layer.parameter,
                num_weights=layer.num_weights,
                macs_share=None if layer.macs is None or not macs else layer.macs / macs,
                num_kept=num_kept,
                sparsity=None if num_kept is None else _sparsity(num_kept, layer.num_weights),
                private=is_private(layer.module, plan),
            )
        )
    return tuple(facts)


def kept_at(group: Group, step: int) -> dict[str, int | None]:
    """How many weights each layer keeps under the masks in force at `step`.

    None where several members share one budget, or where a threshold decides: the weights do.
    """
    if group.target.is_result:
        return dict.fromkeys(group.parameters)
    keeps, parts = keeps_at(group, last_refresh(group, step)), weights_of_unit(group)
    if len(keeps) != len(parts):
        return dict.fromkeys(group.parameters)
    if group.one_budget:  # one member, whose budget may count what its units cost
        keeps = (keeps[0] // unit_costs(group)[0],)
    kept: dict[str, int | None] = {}
    for of_unit, keep in zip(parts, keeps, strict=True):
        for name, size in of_unit.items():
            kept[name] = (kept.get(name) or 0) + size * keep
    return kept


def last_step(plan: PlanFields) -> int:
    """The last step of the run; 0 for a run without steps."""
    return max(0, plan.num_steps - 1)


def mask_bytes(plan: PlanFields) -> int:
    """The memory of all masks in training, in bytes: one per prunable weight."""
    return sum(sum(group.num_weights) for group in plan.groups)


def score_bytes(plan: PlanFields) -> int:
    """The memory of the scores that are kept from step to step: float32."""
    return sum(4 * sum(group.num_weights) for group in plan.groups if group.buffered_score)


def _group_facts(plan: PlanFields, group: Group) -> GroupFacts:
    final = last_refresh(group, last_step(plan))
    size, kept = budget_size(group), kept_in_budget(group, keeps_at(group, final))
    every = max(1, plan.num_steps // CURVE_POINTS)
    is_result = group.target.is_result
    return GroupFacts(
        rule=group.rule,
        counts=counted(group),
        budget=size,
        kept=None if is_result else kept,
        sparsity=None if is_result else _sparsity(kept, size),
        reached=reached_at(group),
        last_refresh=final,
        num_refreshes=num_refreshes(group, plan.num_steps),
        curve=tuple(
            (step, sparsity_at(group, last_refresh(group, step)))
            for step in range(0, 0 if is_result else plan.num_steps, every)
        ),
    )


def _sparsity(kept: int, size: int) -> float:
    return 1 - kept / size if size else 0.0


def is_private(module: str, plan: PlanFields) -> bool:
    """Whether each path has the module for itself, or what it lies in."""
    return any(f"{module}.".startswith(f"{private.module}.") for private in plan.privates)
