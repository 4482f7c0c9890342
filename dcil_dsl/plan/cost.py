"""The arithmetic of a training run, in multiples of a dense one, and what a path skips of it.

In:   a Plan, or groups and layers of one in the making.
Out:  forward-backward passes over the model, per phase and on average over the run; the weights
      that `compute = kept` skips.
Not:  no clock: the trainer measures time. Nothing is skipped here (extras/sparse_compute).
"""

from __future__ import annotations

from collections.abc import Collection

from dcil_dsl.plan.group import Group, budget_size, weights_of_unit
from dcil_dsl.plan.records import Phase, PlanFields, PlanLayer
from dcil_dsl.plan.schedule import keeps_at, last_refresh

MOMENTS = 200  # steps at which a cost that changes with the masks is sampled


def phase_steps(plan: PlanFields, phase: Phase) -> int:
    """How many steps of the run lie in the phase."""
    return phase.window.num_steps(plan.num_steps)


# Of a dense step, forward and backward. Each product of the forward pass, y = x w, has two more in
# the backward pass, dx = dy w and dw = dy x.
FORWARD = 1 / 3


def step_cost(plan: PlanFields, phase: Phase, whole: Collection[str] = ()) -> float:
    """A step of the phase in dense steps: the paths that run, each by the pixels that it sees.

    A path that no open loss teaches runs its forward pass alone and counts for a third; so does a
    teacher, a third of a dense step of its own network. An integrator multiplies it by the number
    of its gradients. A path that skips pruned weights counts with its mean over the phase, and so
    does one that learns in a part of it. whole: weights of a 2:4 pattern that this machine
    multiplies in full.
    """
    integrator = plan.train.integrator
    evaluations = 1 if integrator is None else integrator.num_gradients
    return evaluations * _one_gradient(plan, phase, whole)


def _one_gradient(plan: PlanFields, phase: Phase, whole: Collection[str]) -> float:
    costs = {path.name: path.cost for path in plan.paths}
    smaller = [p.name for p in plan.paths if p.compute == "kept" and p.name in phase.paths]
    if smaller:
        share = _mean_share(plan, phase, whole)
        costs |= {name: share * costs[name] for name in smaller}
    learning = _learning(plan, phase)
    costs = {name: (FORWARD + (1 - FORWARD) * learning[name]) * costs[name] for name in learning}
    return sum(costs.values()) + FORWARD * sum(
        1.0 if teacher.size is None else teacher.size
        for teacher in plan.teachers
        if teacher.name in phase.teachers
    )


def _learning(plan: PlanFields, phase: Phase) -> dict[str, float]:
    """By path that runs, the share of the steps of the phase in which a loss teaches it."""
    steps = phase_steps(plan, phase)
    if not steps:
        return dict.fromkeys(phase.paths, 1.0)
    window = phase.window
    turns = {t for x in plan.losses for t in (x.window.start, x.window.stop) if t is not None}
    end = plan.num_steps if window.stop is None else window.stop
    cuts = [window.start, *sorted(turn for turn in turns if window.start < turn < end), end]
    found = dict.fromkeys(phase.paths, 0)
    for start, stop in zip(cuts, cuts[1:], strict=False):
        part = window.model_copy(update={"start": start, "stop": stop})
        # In a phase with a stride, the losses open at the same multiples.
        few = range(start, min(stop, start + 2 * window.every))
        step = next((at for at in few if part.covers(at)), None)
        if step is None:
            continue
        taught = {x for loss in plan.losses if loss.window.covers(step) for x in loss.term.learners}
        for name in taught.intersection(found):
            found[name] += part.num_steps(plan.num_steps)
    return {name: num / steps for name, num in found.items()}


def runs_forward_alone(plan: PlanFields) -> bool:
    """Whether a teacher, or a path that only teaches, counts for a third."""
    return any(
        phase.teachers or min(_learning(plan, phase).values(), default=1.0) < 1
        for phase in plan.phases
    )


def training_cost(plan: PlanFields, whole: Collection[str] = ()) -> float:
    """The run's arithmetic as a multiple of a dense run of the same length.

        sum over phases (steps * sum over the paths that run (share of the batch * size^2)) / steps
        * gradients of an integrator, plus those that a `balance` measures

    A forward pass alone counts for a third. Otherwise an upper bound: layers before the first
    weight that differs between the paths are computed once for all of them. Zeros do not lower it,
    since masked weights are multiplied by dense kernels, but those that `compute = kept` leaves
    out, of a 2:4 pattern those that sparse tensor cores skip: all but those of `whole`.
    """
    if plan.num_steps == 0:
        return 0.0
    passes = sum(phase_steps(plan, phase) * step_cost(plan, phase, whole) for phase in plan.phases)
    balance = plan.train.balance
    if balance is not None:
        one = {phase: _one_gradient(plan, phase, whole) for phase in plan.phases}
        steps = range(0, plan.num_steps, balance.every.step)
        passes += sum(
            balance.num_gradients(plan.losses, step) * one[plan.phase_at(step)] for step in steps
        )
    return passes / plan.num_steps


def bound(plan: PlanFields) -> str:
    """What kind of number a cost is: "at most", or "about" where scores decide."""
    return "about" if is_estimate(plan) else "at most"


def _mean_share(plan: PlanFields, phase: Phase, whole: Collection[str]) -> float:
    stop = plan.num_steps if phase.window.stop is None else phase.window.stop
    first, last = phase.window.start, max(min(stop, plan.num_steps) - 1, phase.window.start)
    count = min(MOMENTS, last - first + 1)
    moments = [first + (last - first) * i // max(count - 1, 1) for i in range(count)]
    return sum(share_done(plan, step, whole) for step in moments) / count


# -- skipped weights -------------------------------------------------------------------------------


TYPES = ("Conv1d", "Conv2d", "Conv3d", "Linear")
AXES = {"out": 0, "in": 1}
ON_CORES = ("bf16", "fp16")
# Of the three products of a layer in a step, y = x w, dx = dy w and dw = dy x, the first by half.
PATTERN_DONE = (0.5 + 1 + 1) / 3


def left_out(groups: tuple[Group, ...], layers: tuple[PlanLayer, ...]) -> dict[str, int]:
    """The weights of which whole units can be left out, each with the axis of its units.

    Filters and input channels of linear layers and of convolutions in one group, of exactly
    torch.nn's classes: what is left of such a layer is a smaller one of the same kind. A layer with
    hooks, or whose weight the forward reads directly, is computed in full.
    """
    return {
        layer.parameter: AXES[axis]
        for layer in layers
        if layer.group is not None
        and (axis := groups[layer.group].unit.axis) is not None
        and axis in AXES
        and layer.type in TYPES
        and layer.groups == 1
        and layer.is_plain
    }


def in_pattern(groups: tuple[Group, ...], layers: tuple[PlanLayer, ...]) -> tuple[str, ...]:
    """The weights of linear layers whose pattern, 2:4, sparse tensor cores run."""
    runs = {
        name
        for group in groups
        for name, obstacle in zip(group.parameters, group.hardware, strict=False)
        if not obstacle
    }
    return tuple(
        layer.parameter
        for layer in layers
        if layer.parameter in runs and layer.type == "Linear" and layer.is_plain
    )


def share_done(plan: PlanFields, step: int, whole: Collection[str] = ()) -> float:
    """The share of a path's multiply-accumulates that are done with kept units alone.

    A layer with a budget of its own counts with what it keeps; for one that shares its budget, all
    layers of the rule are assumed to keep the same share. A 2:4 pattern saves half of the forward
    product while the pattern is in force, in a precision that sparse tensor cores take, and where
    the layer is not in `whole`. 1 where the arithmetic of a layer is not known.
    """
    macs = {layer.parameter: layer.macs for layer in plan.layers if layer.macs is not None}
    if len(macs) < len(plan.layers) or not sum(macs.values()):
        return 1.0
    kept: dict[str, float] = {}
    for group in plan.groups:
        keeps = keeps_at(group, last_refresh(group, step))
        if group.one_budget:
            kept |= dict.fromkeys(group.parameters, keeps[0] / max(1, budget_size(group)))
        else:
            sizes = dict(zip(group.parameters, group.num_weights, strict=True))
            for keep, of_unit in zip(keeps, weights_of_unit(group), strict=True):
                for name, size in of_unit.items():
                    kept[name] = kept.get(name, 0.0) + keep * size / max(1, sizes[name])
    done = {name: kept[name] for name in left_out(plan.groups, plan.layers)}
    if plan.train.precision in ON_CORES:
        halved = set(in_pattern(plan.groups, plan.layers)) - set(whole)
        done |= {name: PATTERN_DONE for name in halved if kept[name] <= 0.5}
    return sum(n * done.get(name, 1.0) for name, n in macs.items()) / sum(macs.values())


def is_estimate(plan: PlanFields) -> bool:
    """Whether the cost is not a bound: scores decide how much is left out where, or a forward pass
    alone is assumed to be a third of a step."""
    return (
        runs_forward_alone(plan)
        or any(path.compute == "kept" for path in plan.paths)
        and any(group.one_budget and group.unit.axis in AXES for group in plan.groups)
    )
