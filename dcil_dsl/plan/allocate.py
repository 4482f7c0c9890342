"""How a rule's target is shared out among its layers, and what each is sure to keep.

In:   a `prune` rule and the weights it owns.
Out:  a Group of the Plan.
Not:  which weights go (masking/select.py decides at each refresh).
"""

from __future__ import annotations

import math

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.graph.layers import Weight
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang import vocabulary as v
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.schedule import reached_at, whole_units

DEFAULT_FLOOR = 1  # one weight: no budget can remove a whole layer by accident


def allocate_group(
    rule: r.Prune,
    place: str,
    weights: tuple[Weight, ...],
    steps_per_epoch: int,
    num_steps: int,
    report: Diagnostics,
) -> p.Group:
    """The budget of one rule. Budgets below the floors, and ramps that the run or the
    freeze cuts off, are errors: the sparsity asked for would not be what comes out."""
    sizes = tuple(math.prod(weight.shape) for weight in weights)
    floors = tuple(_floor(rule, size) for size in sizes)
    schedule = _schedule(rule.schedule, steps_per_epoch, num_steps)
    group = p.Group(
        rule=place,
        parameters=tuple(weight.name for weight in weights),
        num_weights=sizes,
        allocation="global" if isinstance(rule.target, v.Global) else "uniform",
        target=rule.target.sparsity.fraction,
        score=rule.score,
        schedule=schedule,
        refresh=max(rule.refresh.to_steps(steps_per_epoch, num_steps), 1),
        freeze=rule.freeze and rule.freeze.to_steps(steps_per_epoch, num_steps),
        floors=floors,
    )
    _check_budget(rule, group, report)
    _check_time(rule, group, num_steps, report)
    return group


def _floor(rule: r.Prune, size: int) -> int:
    if rule.floor is None:
        return min(DEFAULT_FLOOR, size)
    return max(math.ceil(size * rule.floor.fraction - 1e-9), DEFAULT_FLOOR)


def _schedule(schedule: v.Schedule, steps_per_epoch: int, num_steps: int) -> p.Schedule:
    def steps(time):
        return time.to_steps(steps_per_epoch, num_steps)

    match schedule:
        case v.Cubic(over=over) | v.Linear(over=over):
            return p.Schedule(
                kind="cubic" if isinstance(schedule, v.Cubic) else "linear",
                start=steps(over.start),
                stop=steps(over.stop),
                initial=schedule.initial.fraction,
                grid=max(steps(schedule.grid), 1) if schedule.grid else 1,
            )
        case v.Once(at=at):
            return p.Schedule(kind="once", start=steps(at))
        case v.Constant():
            return p.Schedule(kind="constant")
    raise AssertionError(schedule)


def _check_budget(rule: r.Prune, group: p.Group, report: Diagnostics) -> None:
    def complain(keeps, floor, what):
        report.add(
            "E304",
            f"{group.target:.4g} of {what} leaves {keeps:,} weights, the floors keep {floor:,}",
            rule.floor_span or rule.target_span,
            help="lower the floor or the target",
        )

    if group.allocation == "global":
        keeps = whole_units(sum(group.num_weights) * (1 - group.target))
        if keeps < sum(group.floors):
            complain(keeps, sum(group.floors), f"{sum(group.num_weights):,} weights")
    else:
        for name, size, floor in zip(
            group.parameters, group.num_weights, group.floors, strict=True
        ):
            keeps = whole_units(size * (1 - group.target))
            if keeps < floor:
                complain(keeps, floor, f"`{name}` ({size:,} weights)")


def _check_time(rule: r.Prune, group: p.Group, num_steps: int, report: Diagnostics) -> None:
    reached = reached_at(group)
    if group.schedule.kind in ("cubic", "linear") and group.schedule.stop <= group.schedule.start:
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
