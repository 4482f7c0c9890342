"""The groups of a Plan, printed: what is asked of them, and when.

In:   a Plan, and the page.
Out:  the budgets in words; the sparsity over the run, drawn.
Not:  show.py puts the parts together.
"""

from __future__ import annotations

from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.budget import budget_size, counted, kept_in_budget, num_units, unit_costs
from dcil_dsl.plan.curve import draw_schedule, same_curve
from dcil_dsl.plan.facts import mask_bytes, score_bytes
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.plan.schedule import keeps_at, last_refresh
from dcil_dsl.plan.show_layers import short_name
from dcil_dsl.plan.wording import Page, moment, percent, shorten
from dcil_dsl.words.granularity import Block
from dcil_dsl.words.schedules import Constant, Schedule


def show_groups(plan: Plan, page: Page) -> str:
    """What each rule asks of its layers, and when."""
    lines = ["budgets"]
    for group in plan.groups:
        freeze = "never" if group.freeze is None else moment(group.freeze, plan)
        lines += [
            shorten(group.rule, page.width),
            f"  {group_line(plan, group)}",
            f"  schedule {schedule_words(group.schedule, group.sparsity, plan)}",
            f"  score {group.score.summary()}, masks move {refresh_words(group)}, "
            f"freeze {freeze}, floor {floor_words(group)}",
            *(f"  {line}" for line in dynamics_words(group, plan)),
            *(f"  {line}" for line in hardware_words(group)),
            *(f"  {line}" for line in tie_words(group, page.width - 2)),
        ]
    if not plan.groups:
        lines.append("none: no weight is pruned")
        return "\n".join(lines)
    whole = mask_bytes(plan)
    memory = f"masks take {whole:,} bytes in training, {-(-whole // 8):,} packed into bits"
    if score_bytes(plan):
        memory += f"; scores kept between steps {score_bytes(plan):,}"
    lines.append(memory)
    return "\n".join(lines)


def refresh_words(group: Group) -> str:
    """When masks are recomputed: "every 16 steps", "at 8 moments"."""
    if group.moments:
        return f"at {count(len(group.moments), 'moment')}"
    return f"every {count(group.refresh, 'step')}"


def dynamics_words(group: Group, plan: Plan) -> list[str]:
    """What happens to the weights beside being masked, a line each."""
    lines = []
    if group.regrow is not None:
        lines.append(
            f"each time {percent(group.regrow.share.fraction)} of what is kept is dropped and as "
            "much grown "
            f"{group.regrow.where}, falling to nothing at {moment(group.regrow.stop.step, plan)}"
        )
    if group.forget:
        lines.append("what is pruned becomes zero at once, and its momentum")
    if group.reserve:
        lines.append(f"reserve: the next best {percent(group.reserve)}, pruned, with own updates")
    for penalty in group.penalties:
        rising = f", rising in {count(penalty.stairs, 'step')}" if penalty.stairs else ""
        lines.append(
            f"penalty: {penalty.weight:g} times {penalty.summary()} of the {penalty.part}{rising}"
        )
    if group.param is not None:
        lines.append(f"stored as theta: {group.param.summary()}")
    return lines


def show_curves(plan: Plan, page: Page) -> str:
    """The sparsity over the run, once for all groups whose curves are the same."""
    alike: dict[tuple, list[Group]] = {}
    for group in plan.groups:
        if not isinstance(group.schedule, Constant):
            alike.setdefault(same_curve(group), []).append(group)
    parts = []
    for groups in alike.values():
        lines = ", ".join(":" + group.rule.rpartition(":")[2] for group in groups)
        whose = "" if len(groups) == len(plan.groups) else f" of {lines}"
        head = f"sparsity{whose} over the run (^ masks move, . they stand still)"
        curve = draw_schedule(groups[0], plan, page)
        parts.append("\n".join([shorten(head, page.width), *curve]))
    return "\n\n".join(parts)


def group_line(plan: Plan, group: Group) -> str:
    """ "90% of 463,792 weights in 33 layers, one budget for all; 46,379 kept at the end"."""
    size = count(budget_size(group), counted(group, many=False))
    end = last_refresh(group, max(0, plan.num_steps - 1))
    kept = kept_in_budget(group, keeps_at(group, end))
    shared = "one budget for all" if group.one_budget else "one budget each"
    shared += group.target.how
    layers = count(len(group.parameters), "layer")
    at_most = "at most " if group.one_budget and len(set(unit_costs(group))) > 1 else ""
    return (
        f"{percent(group.sparsity)} of {size}{_unit_words(group)} in {layers}, {shared}; "
        f"{at_most}{kept:,} kept at the end"
    )


def _unit_words(group: Group) -> str:
    """What goes together, where the noun of the budget does not say it."""
    unit = group.unit
    if group.pattern is not None:
        return f", {group.pattern.n} of every {group.pattern.m} inputs kept,"
    if isinstance(unit, Block):
        size = f" of {unit.height} x {unit.width}"
        return size if group.of == "units" else f", {unit.together} together,"
    return "" if unit.single or group.of == "units" else f", whole {unit.together},"


def schedule_words(schedule: Schedule, target: float, plan: Plan) -> str:
    """ "cubic from 0% at step 0 (epoch 0) to 90% at step 1,000 (epoch 10)"."""
    return schedule.summary(percent(target), lambda step: moment(step, plan))


def floor_words(group: Group) -> str:
    """ "1 weight a layer"; with a ceiling also what it allows."""
    noun = group.unit.noun
    sizes = num_units(group)
    words = f"1 {noun} a layer"
    if any(floor != 1 for floor in group.floors):
        shares = [floor / max(1, size) for floor, size in zip(group.floors, sizes, strict=True)]
        least = percent(round(min(shares), 4))
        words = f"{count(sum(group.floors), noun)}, at least {least} of a layer"
    if group.ceilings:
        shares = [most / max(1, size) for most, size in zip(group.ceilings, sizes, strict=True)]
        words += f", ceiling {percent(round(max(shares), 4))} of a layer"
    for bound in group.bounds:
        size = sum(sizes[i] for i in bound.members)
        least, most = (percent(round(n / size, 4)) for n in (bound.floor, bound.ceiling))
        words += f", {bound.name} together {least} to {most}"
    return words


def tie_words(group: Group, width: int) -> list[str]:
    """Which filters are tied, which are bound and why; those of one layer alone are counted."""
    if not group.ties:
        return []
    tied = [tie for tie in group.ties if len(tie.filters_of_unit) > 1 and not tie.bound]
    alone = sum(len(tie.parts) == 1 and not tie.bound for tie in group.ties)
    bound = [tie for tie in group.ties if tie.bound]
    words = f"tied filters: {count(len(tied), 'set')} in several layers, {alone:,} in one"
    lines = [words + (f", {count(len(bound), 'set')} bound" if bound else "")]
    for tie in [*tied, *bound]:
        parts = [
            short_name(name) + (f" x {n}" if n > 1 else "")
            for name, n in tie.filters_of_unit.items()
        ]
        why = f"; bound: {tie.bound}" if tie.bound else ""
        lines += wrap(
            f"{count(tie.num_units, 'unit')} of {', '.join(parts)}{why}",
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def hardware_words(group: Group) -> list[str]:
    """Which layers of a pattern sparse tensor cores run, and why they do not run the others."""
    if not group.hardware:
        return []
    runs = sum(not reason for reason in group.hardware)
    lines = [f"sparse tensor cores run it in {runs} of {count(len(group.hardware), 'layer')}"]
    reasons: dict[str, list[str]] = {}
    for name, reason in zip(group.parameters, group.hardware, strict=True):
        reasons.setdefault(reason, []).append(short_name(name))
    return lines + [f"  not in {', '.join(own)}: {why}" for why, own in reasons.items() if why]
