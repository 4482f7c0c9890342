"""What a path that computes its kept units alone leaves out.

In:   a Plan, or groups and layers of one in the making.
Out:  the weights of which whole filters or channels are left out, those of a pattern that sparse
      tensor cores multiply by; the share of the arithmetic that is done.
Not:  nothing is computed smaller here (compiler/skip_pruned.py), and no device is asked.
"""

from __future__ import annotations

from collections.abc import Collection

from dcil_dsl.plan import plan as p
from dcil_dsl.plan.budget import budget_size, weights_of_unit
from dcil_dsl.plan.schedule import keeps_at, last_refresh

TYPES = ("Conv1d", "Conv2d", "Conv3d", "Linear")
AXES = {"out": 0, "in": 1}
ON_CORES = ("bf16", "fp16")
# Of the three products of a layer in a step, y = x w, dx = dy w and dw = dy x, the first by half.
PATTERN_DONE = (0.5 + 1 + 1) / 3


def left_out(groups: tuple[p.Group, ...], layers: tuple[p.Layer, ...]) -> dict[str, int]:
    """The weights of which whole units can be left out, each with the axis of its units.

    Filters and input channels of convolutions in one group and of linear layers, of their own
    classes: what is left of them is a smaller layer of the same kind. One with hooks, or whose
    weight the forward reads by hand, is computed whole.
    """
    return {
        layer.parameter: AXES[groups[layer.group].unit.axis]
        for layer in layers
        if layer.group is not None
        and groups[layer.group].unit.axis in AXES
        and layer.type in TYPES
        and layer.groups == 1
        and layer.is_plain
    }


def in_pattern(groups: tuple[p.Group, ...], layers: tuple[p.Layer, ...]) -> tuple[str, ...]:
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


def share_done(plan: p.Plan, step: int, whole: Collection[str] = ()) -> float:
    """The share of a path's multiply-accumulates that are done with kept units alone.

    A layer with a budget of its own does what it keeps; one that shares its budget is counted as
    if all of its rule kept alike. One of a pattern is spared half of its forward product while
    the pattern is there, in a precision that sparse tensor cores take and where it is not in
    `whole`. 1 where the arithmetic of a layer is not known.
    """
    known = [layer.macs for layer in plan.layers]
    if None in known or not sum(known):
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
        done |= {name: PATTERN_DONE for name in halved if kept[name] < 1}
    return sum(layer.macs * done.get(layer.parameter, 1.0) for layer in plan.layers) / sum(known)


def is_estimate(plan: p.Plan) -> bool:
    """Whether scores decide how much is left out where, so that its cost is no bound."""
    return any(path.compute == "kept" for path in plan.paths) and any(
        group.one_budget and group.unit.axis in AXES for group in plan.groups
    )
