"""How a rule's target is shared out among its layers, and what each is sure to keep.

In:   a `prune` rule and the weights it owns.
Out:  a Group of the Plan.
Not:  which weights go (masking/select.py decides at each refresh).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.heads import HeadShare
from dcil_dsl.model.layers import Weight
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.budget import budget_size, counted, members, num_units, unit_costs
from dcil_dsl.plan.cuts import tensor_core_obstacle
from dcil_dsl.plan.dynamics import resolve_dynamics
from dcil_dsl.plan.measured import measured_shares
from dcil_dsl.plan.members import divide, tie_members, unit_prices
from dcil_dsl.plan.schedule import reached_at, whole_units
from dcil_dsl.plan.share_out import share_out
from dcil_dsl.plan.ties import warn_of_bound
from dcil_dsl.plan.wording import percent
from dcil_dsl.words.granularity import Head
from dcil_dsl.words.schedules import Ramp
from dcil_dsl.words.word import Run

DEFAULT_FLOOR = 1  # one unit: no budget can remove a whole layer by accident


def allocate_group(
    rule: r.Prune,
    place: str,
    weights: tuple[Weight, ...],
    heads: Mapping[str, HeadShare],
    ties: tuple[p.Tie, ...],
    run: Run,
    report: Diagnostics,
) -> p.Group | None:
    """The budget of one rule. Weights that do not fall into the rule's units, budgets below the
    floors or above the ceilings, and ramps that the run or the freeze cuts off, are errors: the
    sparsity asked for would not be what comes out. None where there is no budget to speak of.
    """
    target = rule.target.in_steps(run)
    unit = target.pattern or rule.granularity
    owned = divide(rule, unit, weights, heads, report)
    if owned and ties:
        weights = tuple(weight for member in owned for weight in member.weights)
        cuts = tuple(cut for member in owned for cut in member.cuts)
        owned = tie_members(owned, ties)
    of, costs = unit_prices(rule, unit, owned or [], report)
    if owned is None or costs is None:
        return None
    if not ties:
        weights = tuple(weight for member in owned for weight in member.weights)
        cuts = tuple(cut for member in owned for cut in member.cuts)
    is_pattern = target.pattern is not None
    sizes = [math.prod(m.weights[0].shape) if is_pattern else m.num_units for m in owned]
    group = p.Group(
        rule=place,
        parameters=tuple(weight.name for weight in weights),
        num_weights=tuple(math.prod(weight.shape) for weight in weights),
        target=target,
        of=of,
        granularity=rule.granularity,
        cuts=cuts,
        spans=tuple(len(member.weights) for member in owned) if isinstance(unit, Head) else (),
        ties=ties,
        costs=costs,
        floors=tuple(
            size if m.bound else _floor(rule, size) for m, size in zip(owned, sizes, strict=True)
        ),
        ceilings=tuple(
            size if m.bound else _ceiling(rule, size) for m, size in zip(owned, sizes, strict=True)
        )
        if rule.ceiling
        else (),
        hardware=tuple(tensor_core_obstacle(w, unit) for w in weights) if is_pattern else (),
        score=target.score_for(rule.score).in_steps(run),
        schedule=rule.schedule.in_steps(run),
        freeze=rule.freeze and run.steps(rule.freeze).step,
        **resolve_dynamics(rule, run),
    )
    _check_budget(rule, group, report)
    warn_of_bound(rule, group, report)
    targets = None
    if any(m.bound for m in owned) and not (target.one_budget or target.divides):
        targets = tuple(0.0 if m.bound else group.sparsity for m in owned)
    elif proportions := target.proportions([[w.shape for w in m.weights] for m in owned]):
        targets = _divided(proportions, group)
    elif target.measured_in is not None:
        targets = measured_shares(rule, group, report)
    if targets is not None:
        group = group.model_copy(update={"targets": targets})
    _check_time(rule, group, run.num_steps, report)
    return group


# -- bounds -----------------------------------------------------------------------------------


def _divided(proportions: tuple[float, ...], group: p.Group) -> tuple[float, ...]:
    """The share of each member that is pruned in the end."""
    costs, ceilings = unit_costs(group), group.ceilings or num_units(group)
    sizes, least, most = (
        [number * cost for number, cost in zip(counts, costs, strict=True)]
        for counts in (num_units(group), group.floors, ceilings)
    )
    densities = share_out(proportions, sizes, sum(sizes) * (1 - group.sparsity), least, most)
    return tuple(1 - density for density in densities)


def _floor(rule: r.Prune, size: int) -> int:
    if rule.floor is None:
        return min(DEFAULT_FLOOR, size)
    return max(math.ceil(size * rule.floor.fraction - 1e-9), DEFAULT_FLOOR)


def _ceiling(rule: r.Prune, size: int) -> int:
    return max(whole_units(size * rule.ceiling.fraction), DEFAULT_FLOOR)


# -- time --------------------------------------------------------------------------------------


def _check_budget(rule: r.Prune, group: p.Group, report: Diagnostics) -> None:
    """E304, once for the rule."""
    noun, target = counted(group, many=False), percent(round(group.sparsity, 6))
    sizes, costs = num_units(group), unit_costs(group)
    if group.ties and all(tie.bound for tie in group.ties):
        return  # warn_of_bound
    ceilings = group.ceilings or sizes
    if group.one_budget or group.target.divides:
        least, most = (
            sum(number * cost for number, cost in zip(counts, costs, strict=True))
            for counts in (group.floors, ceilings)
        )
        budgets = [(count(budget_size(group), noun), budget_size(group), least, most)]
    else:
        names = [own[0] for own in members(group)]
        bound = [bool(tie.bound) for tie in group.ties] or [False] * len(names)
        rows = zip(names, sizes, group.floors, ceilings, costs, bound, strict=True)
        budgets = [
            (f"`{name}` ({count(size * cost, noun)})", size * cost, least * cost, most * cost)
            for name, size, least, most, cost, stays in rows
            if not stays
        ]
    wrong = []
    for what, size, least, most in budgets:
        keeps = whole_units(size * (1 - group.sparsity))
        leaves = f"{what} leaves {count(keeps, noun)}"
        if keeps < least:
            wrong.append((f"{leaves}, the floors keep {least:,}", True))
        elif keeps > most:
            wrong.append((f"{leaves}, the ceilings allow {most:,}", False))
    if wrong:
        fact, is_floor = wrong[0]
        more = f", likewise in {count(len(wrong) - 1, 'more layer')}" if len(wrong) > 1 else ""
        span = rule.floor_span if is_floor else rule.ceiling_span
        report.add(
            "E304",
            f"{target} of {fact}{more}",
            span or rule.target_span,
            help=(
                "lower the floor or the target" if is_floor else "raise the ceiling or the target"
            )
            + ("; `granularity = filter(ties = none)` unties filters" if group.ties else ""),
        )


def _check_time(rule: r.Prune, group: p.Group, num_steps: int, report: Diagnostics) -> None:
    reached = reached_at(group)
    if isinstance(group.schedule, Ramp) and reached <= group.schedule.start:
        report.add(
            "E305",
            "the ramp is shorter than one step",
            rule.schedule_span or rule.span,
            help="`once(at=...)` prunes at one moment",
        )
    elif reached >= num_steps:
        report.add(
            "E305",
            f"the target is reached at step {reached:,}, the run has {num_steps:,}",
            rule.schedule_span or rule.span,
            label="no step would train at the sparsity that is asked for",
        )
    elif group.freeze is not None and group.freeze < reached:
        report.add(
            "E305",
            f"masks freeze at step {group.freeze:,}, before the target is reached at {reached:,}",
            rule.freeze_span or rule.span,
        )
