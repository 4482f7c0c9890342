"""The layers of a Plan and the groups they are pruned in, printed.

In:   a Plan, and the page.
Out:  the table of layers; what is asked of each group.
Not:  show.py puts the parts together.
"""

from __future__ import annotations

from dcil_dsl.plan.curve import draw_schedule, same_curve
from dcil_dsl.plan.plan import Group, Layer, Plan, Schedule
from dcil_dsl.plan.schedule import keeps_at, last_refresh
from dcil_dsl.plan.wording import Page, count, moment, percent, shorten, table


def show_layers(plan: Plan, page: Page) -> str:
    """Every layer with the rule that claimed it and its target."""
    files = {layer.rule.rpartition(":")[0] for layer in plan.layers if layer.rule}
    macs = sum(layer.macs or 0 for layer in plan.layers)
    rows = [_layer_row(plan, layer, macs, short=len(files) == 1) for layer in plan.layers]
    others = sum(max(len(row[i]) for row in rows) + 2 for i in range(1, 8)) if rows else 0
    room = max(12, page.width - others)
    rows = [(shorten(row[0], room), *row[1:]) for row in rows]
    note = f" (rules by their line in {next(iter(files))})" if len(files) == 1 else ""
    header = ("parameter", "type", "shape", "weights", "MACs", "rule", "group", "target")
    note = shorten(note, page.width - 25)
    return "\n".join([f"layers in execution order{note}", *table(header, rows, "lllrrlll")])


def _layer_row(plan: Plan, layer: Layer, macs: int, short: bool) -> tuple[str, ...]:
    rule = "-" if layer.rule is None else layer.rule.rpartition("/")[2]
    if short and layer.rule is not None:
        rule = ":" + layer.rule.rpartition(":")[2]
    share = "-" if layer.macs is None or not macs else f"{100 * layer.macs / macs:.1f}%"
    group, target = "-", "kept"
    if layer.group is not None:
        whole = plan.groups[layer.group]
        group, target = str(layer.group), percent(whole.target)
        target += " of all" if whole.allocation == "global" else ""
    shape = "x".join(str(size) for size in layer.shape)
    kind = shorten(layer.type, 16)
    return (layer.parameter, kind, shape, f"{layer.num_weights:,}", share, rule, group, target)


def show_groups(plan: Plan, page: Page) -> str:
    """What each rule asks of its layers, and when."""
    lines = ["groups"]
    for index, group in enumerate(plan.groups):
        lines.append(f"{index}  {shorten(group.rule, page.width - 3)}")
        lines.append(f"   {group_line(plan, group)}")
        lines.append(f"   schedule {schedule_words(group.schedule, group.target, plan)}")
        freeze = "never" if group.freeze is None else moment(group.freeze, plan)
        lines.append(
            f"   score {group.score}, masks move every {count(group.refresh, 'step')}, "
            f"freeze {freeze}, floor {_floor(group)}"
        )
    if not plan.groups:
        lines.append("none: no weight is pruned")
    return "\n".join(lines)


def show_curves(plan: Plan, page: Page) -> str:
    """The sparsity over the run, once for all groups whose curves are the same."""
    alike: dict[tuple, list[int]] = {}
    for index, group in enumerate(plan.groups):
        if group.schedule.kind != "constant":
            alike.setdefault(same_curve(group), []).append(index)
    parts = []
    for indices in alike.values():
        which = ", ".join(str(index) for index in indices)
        whose = "" if len(indices) == len(plan.groups) else f" of group {which}"
        parts.append(
            "\n".join(
                [
                    f"sparsity{whose} over the run (^ masks move, . they stand still)",
                    *draw_schedule(plan.groups[indices[0]], plan, page),
                ]
            )
        )
    return "\n\n".join(parts)


def group_line(plan: Plan, group: Group) -> str:
    """"90% of 463,792 weights in 33 layers, one budget for all; 46,379 kept at the end"."""
    size = sum(group.num_weights)
    kept = sum(keeps_at(group, last_refresh(group, max(0, plan.num_steps - 1))))
    shared = "one budget for all" if group.allocation == "global" else "one budget each"
    layers = count(len(group.parameters), "layer")
    return (
        f"{percent(group.target)} of {size:,} weights in {layers}, {shared}; "
        f"{kept:,} kept at the end"
    )


def schedule_words(schedule: Schedule, target: float, plan: Plan) -> str:
    """"cubic from 0% at step 0 (epoch 0) to 90% at step 1,000 (epoch 10)"."""
    match schedule.kind:
        case "constant":
            return f"{percent(target)} from the first step on"
        case "once":
            return f"0% until {moment(schedule.start, plan)}, then {percent(target)}"
        case _:
            grid = f", moving every {schedule.grid:,} steps" if schedule.grid > 1 else ""
            return (
                f"{schedule.kind} from {percent(schedule.initial)} at "
                f"{moment(schedule.start, plan)} to {percent(target)} at "
                f"{moment(schedule.stop, plan)}{grid}"
            )


def _floor(group: Group) -> str:
    if all(floor == 1 for floor in group.floors):
        return "1 weight a layer"
    shares = [floor / size for floor, size in zip(group.floors, group.num_weights, strict=True)]
    return f"{sum(group.floors):,} weights, at least {percent(round(min(shares), 4))} of a layer"
