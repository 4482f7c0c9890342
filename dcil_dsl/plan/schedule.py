"""Sparsity as a pure function of the step, and the steps at which masks move.

In:   a Group of the Plan and a step, counted from 0 before the first update.
Out:  the sparsity asked for at that step, the count of weights to keep, whether masks move.
Not:  no tensors; masking/select.py makes the masks.
"""

from __future__ import annotations

from dcil_dsl.plan.plan import Group


def sparsity_at(group: Group, step: int) -> float:
    """The share of the group's weights that is asked to be zero at `step`."""
    schedule, target = group.schedule, group.target
    if schedule.kind == "constant":
        return target
    if schedule.kind == "once":
        return target if step >= schedule.start else 0.0
    if step >= schedule.stop:
        return target
    # The grid moves the clock, not the curve: with `grid=1ep` every step of an epoch asks
    # for what its first step asked for.
    step = max(step // schedule.grid * schedule.grid, schedule.start)
    u = (step - schedule.start) / (schedule.stop - schedule.start)
    rise = 1 - (1 - u) ** 3 if schedule.kind == "cubic" else u
    return schedule.initial + (target - schedule.initial) * rise


def reached_at(group: Group) -> int:
    """The first step at which the target itself is asked for."""
    schedule = group.schedule
    return {"constant": 0, "once": schedule.start}.get(schedule.kind, schedule.stop)


def keeps_at(group: Group, step: int) -> tuple[int, ...]:
    """How many weights are kept at `step`: one number for a global group, one a layer else.

    Never below the floors, which are part of the promise.
    """
    density = 1.0 - sparsity_at(group, step)
    if group.allocation == "global":
        return (max(whole_weights(sum(group.num_weights) * density), sum(group.floors)),)
    return tuple(
        max(whole_weights(size * density), floor)
        for size, floor in zip(group.num_weights, group.floors, strict=True)
    )


def is_refresh(group: Group, step: int) -> bool:
    """Whether the masks of the group are recomputed before `step`.

    Beside the multiples of `refresh`, masks move when the target is reached and when they
    freeze, so that a finished ramp leaves exactly the sparsity that was asked for.
    """
    if group.freeze is not None and step > group.freeze:
        return False
    return step % group.refresh == 0 or step == reached_at(group) or step == group.freeze


def last_refresh(group: Group, step: int) -> int:
    """The latest step up to and including `step` at which the masks were recomputed."""
    if group.freeze is not None:
        step = min(step, group.freeze)
    reached = reached_at(group)
    moments = (step // group.refresh * group.refresh, reached, group.freeze)
    return max(moment for moment in moments if moment is not None and moment <= step)


def whole_weights(count: float) -> int:
    """The whole weights in a share of them: never one more, so never less sparse than asked.

    The slack is for 1 - 0.9 = 0.09999999999999998 of ten weights, which is one weight.
    """
    return int(count * (1 + 1e-12) + 1e-9)
