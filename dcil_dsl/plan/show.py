"""Print a Plan: what `dcil plan` shows and golden files hold.

In:   a Plan, and the Page.
Out:  text no wider than the Page, the same for the same Plan: head, layers, budgets, curves.
Not:  no decisions and no measured numbers (exporting/report.py); paths, losses and training are in
      show_training.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.cost import bound, training_cost
from dcil_dsl.plan.facts import LayerFacts, layer_facts, mask_bytes, score_bytes
from dcil_dsl.plan.group import (
    Group,
    budget_size,
    counted,
    kept_in_budget,
    members,
    num_units,
    unit_costs,
)
from dcil_dsl.plan.records import OpaqueModule, PlanFields, PlanLayer, Unprunable
from dcil_dsl.plan.schedule import keeps_at, last_refresh, reached_at, sparsity_at
from dcil_dsl.plan.show_training import (
    cost_elsewhere,
    show_expectations,
    show_losses,
    show_phases,
    show_privates,
    show_training,
)
from dcil_dsl.plan.text import (
    PLAIN,
    Page,
    draw_schedule,
    fit,
    moment,
    named_table,
    percent,
    same_curve,
    shorten,
)
from dcil_dsl.words.granularity import Block
from dcil_dsl.words.schedules import Constant, Schedule


def show_plan(plan: PlanFields, page: Page = PLAIN) -> str:
    """The full plan: head, layers, groups, private modules, phases, losses, training."""
    parts = [
        _head(plan, page),
        show_layers(plan, page),
        show_apart(plan, page),
        show_groups(plan, page),
        show_curves(plan, page),
        show_privates(plan, page),
        show_phases(plan),
        show_losses(plan),
        show_training(plan, page),
        show_expectations(plan),
    ]
    return fit("\n\n".join(part for part in parts if part), page.width) + "\n"


def show_summary(plan: PlanFields, page: Page = PLAIN) -> str:
    """A summary of a few lines, for the start of a run."""
    pruned = [layer for layer in plan.layers if layer.group is not None]
    weights, total = (sum(layer.num_weights for layer in some) for some in (pruned, plan.layers))
    lines = [
        _head(plan, page),
        f"prunes   {len(pruned)} of {count(len(plan.layers), 'layer')}, {weights:,} of "
        f"{count(total, 'weight')}",
    ]
    lines += [f"         {group_line(plan, group)}" for group in plan.groups]
    if plan.privates:
        lines.append(f"private  {count(len(plan.privates), 'module')}, one for each path")
    lines.append(f"cost     {training_cost(plan):.2f} dense runs of arithmetic, {bound(plan)}")
    lines += [f"         {line}" for line in cost_elsewhere(plan)]
    return fit("\n".join(lines), page.width) + "\n"


def _head(plan: PlanFields, page: Page) -> str:
    about = plan.recipe
    lines = [f"recipe   {about.name}" + (f" {about.version}" if about.version else "")]
    lines += [f"         {line}" for line in wrap(about.title or "", page.width - 9)]
    if about.overrides:
        settings = ", ".join(f"{name}={value}" for name, value in sorted(about.overrides.items()))
        lines += [
            f"{'set' if not i else '':8} {line}"
            for i, line in enumerate(wrap(settings, page.width - 9))
        ]
    classes = ""
    if plan.model.classes is not None:
        classes = f", {count(plan.model.classes, 'class', 'classes')}"
    lines.append(f"model    {plan.model.name or 'as given'}{classes}")
    size = (
        f", {plan.data.channels} x {plan.data.image_size} x {plan.data.image_size}"
        if plan.data.image_size
        else f", {count(plan.data.length, 'token')} a text"
        if plan.data.length
        else ""
    )
    lines.append(
        f"data     {plan.data.name or 'as given'}, batches of {plan.data.batch_size}{size}"
    )
    lines.append(
        f"run      {count(plan.train.num_epochs, 'epoch')} of "
        f"{count(plan.steps_per_epoch, 'step')} = {count(plan.num_steps, 'step')}"
    )
    return "\n".join(shorten(line, page.width) for line in lines)


# -- layers ----------------------------------------------------------------------------------------


MANY = 6  # modules with one reason that are named one by one


def show_layers(plan: PlanFields, page: Page) -> str:
    """Every layer with the rule that claimed it, its share of the arithmetic, its target."""
    files = {layer.rule.rpartition(":")[0] for layer in plan.layers if layer.rule}
    facts = layer_facts(plan)
    rows = [
        _layer_row(plan, layer, fact, short=len(files) == 1)
        for layer, fact in zip(plan.layers, facts, strict=True)
    ]
    note = f" (rules by their line in {next(iter(files))})" if len(files) == 1 else ""
    note = shorten(note, page.width - 25)
    header = ("layer", "type", "shape", "weights", "FLOPs", "rule", "target")
    return "\n".join([f"layers in execution order{note}", *fitting(header, rows, page)])


def fitting(header: tuple[str, ...], rows: list[tuple[str, ...]], page: Page) -> list[str]:
    """The table of layers; on a narrow page its types go first, then shapes, then names that are
    still too long stand on lines of their own."""
    sides = "lllrrll"
    for left_out in ((), (1,), (1, 2)):
        shown = [i for i in range(len(header)) if i not in left_out]
        cut = [tuple(row[i] for i in shown) for row in (header, *rows)]
        others = sum(max(map(len, column)) + 2 for column in list(zip(*cut, strict=True))[1:])
        room = page.width - others
        if max(len(row[0]) for row in cut) <= room:
            break
    lines = named_table(cut[0], cut[1:], "".join(sides[i] for i in shown), max(5, room), page)
    return [line for row in lines for line in row]


def show_apart(plan: PlanFields, page: Page) -> str:
    """What the tracer kept opaque and what no rule can prune, with the reasons."""
    parts = []
    if plan.opaque:
        inside = sum(is_whole(layer, plan) for layer in plan.layers)
        lines = [
            f"kept opaque by the tracer: {count(len(plan.opaque), 'module')}, with "
            f"{count(inside, 'layer')} of the above inside, rewritten at each call"
        ]
        lines += _reasons(plan.opaque, page)
        parts.append("\n".join(lines))
    if plan.out_of_reach:
        lines = ["out of the reach of every rule", *_reasons(plan.out_of_reach, page)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _reasons(entries: Sequence[OpaqueModule | Unprunable], page: Page) -> list[str]:
    """One line per reason, with its modules: often many share one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        alike.setdefault((entry.type, entry.reason), []).append(entry.module or "the model itself")
    lines = []
    for (kind, reason), modules in alike.items():
        names = (
            ", ".join(modules)
            if len(modules) <= MANY
            else (f"{modules[0]} to {modules[-1]}, {len(modules)} modules")
        )
        lines += wrap(
            f"{names} ({kind}): {reason}",
            page.width,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return lines


def is_whole(layer: PlanLayer, plan: PlanFields) -> bool:
    """Whether a layer lies in a module that the tracer kept opaque, or is one."""
    return any(
        not entry.module or f"{layer.module}.".startswith(f"{entry.module}.")
        for entry in plan.opaque
    )


def short_name(parameter: str) -> str:
    """ "conv1.weight" -> "conv1", as selectors name it; other parameters keep theirs."""
    return parameter.removesuffix(".weight")


def target_words(plan: PlanFields, layer: PlanLayer) -> str:
    """ "90%" of a layer alone, "90% of all" of one that shares its budget, "kept"."""
    if layer.group is None:
        return "kept"
    group = plan.groups[layer.group]
    whole = "all" if group.one_budget else ""
    unit = group.unit
    if group.pattern is not None:
        return f"{group.pattern.n}:{group.pattern.m}"
    if isinstance(unit, Block):
        whole += f" {unit.height} x {unit.width} blocks"
    elif not unit.single:
        whole += f" {unit.together}"
    counts = ", in FLOPs" if group.of == "flops" else ""
    if group.target.is_result:
        return f"below {group.target.limit:g}" + (f", {whole.strip()}" if whole else "")
    target = share_of(group, layer.parameter)
    return percent(target) + (f" of {whole.strip()}" if whole else "") + counts


def share_of(group: Group, parameter: str) -> float:
    """The final requested sparsity of a layer; of one that shares its budget, that of all."""
    if group.before is not None:
        return round(_share_of_all(group, parameter), 3)
    if not group.targets:
        return group.sparsity
    if group.ties:
        parts = [
            (t, tie.filters_of_unit.get(parameter, 0) * tie.num_units)
            for t, tie in zip(group.targets, group.ties, strict=True)
        ]
        return round(sum(t * n for t, n in parts) / max(1, sum(n for _, n in parts)), 3)
    own = zip(members(group), group.targets, strict=True)
    return next(round(target, 3) for names, target in own if parameter in names)


def _share_of_all(group: Group, parameter: str) -> float:
    """The share of all weights of a layer, where whole units are pruned before."""
    end = reached_at(group)
    if group.one_budget:
        return sparsity_at(group, end)
    at = group.parameters.index(parameter)
    return 1 - keeps_at(group, end)[at] / max(1, group.num_weights[at])


def _layer_row(
    plan: PlanFields, layer: PlanLayer, fact: LayerFacts, short: bool
) -> tuple[str, ...]:
    rule = "-" if layer.rule is None else layer.rule.rpartition("/")[2]
    if short and layer.rule is not None:
        rule = ":" + layer.rule.rpartition(":")[2]
    share = "-" if fact.macs_share is None else f"{100 * fact.macs_share:.1f}%"
    target = target_words(plan, layer) + (", private" if fact.private else "")
    target += ", whole" if is_whole(layer, plan) else ""
    shape = "x".join(str(size) for size in layer.shape)
    name, kind = short_name(layer.parameter), shorten(layer.type, 16)
    return (name, kind, shape, f"{layer.num_weights:,}", share, rule, target)


# -- budgets ---------------------------------------------------------------------------------------


def show_groups(plan: PlanFields, page: Page) -> str:
    """The budget and the schedule of each rule."""
    lines = ["budgets"]
    for group in plan.groups:
        freeze = "never" if group.freeze is None else moment(group.freeze, plan)
        lines += [
            shorten(group.rule, page.width),
            *(f"  {line}" for line in before_words(group, plan)),
            f"  {group_line(plan, group)}",
            f"  schedule {course_words(group, plan)}",
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


def dynamics_words(group: Group, plan: PlanFields) -> list[str]:
    """Effects on the weights in addition to masks, a line each."""
    lines = []
    if group.regrow is not None:
        lines.append(
            f"each time {percent(group.regrow.share.fraction)} of what is kept is dropped and as "
            "much grown "
            f"{group.regrow.where}, falling to nothing at {moment(group.regrow.stop.step, plan)}"
        )
    if group.forget:
        lines.append("pruned weights become zero at once, and their momentum")
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


def show_curves(plan: PlanFields, page: Page) -> str:
    """The sparsity over the run, once for all groups whose curves are the same."""
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in plan.groups:
        if not isinstance(group.schedule, Constant) and not group.target.is_result:
            alike.setdefault(same_curve(group), []).append(group)
    parts = []
    for groups in alike.values():
        lines = ", ".join(":" + group.rule.rpartition(":")[2] for group in groups)
        whose = "" if len(groups) == len(plan.groups) else f" of {lines}"
        head = f"sparsity{whose} over the run (^ masks move, . they stand still)"
        curve = draw_schedule(groups[0], plan, page)
        parts.append("\n".join([shorten(head, page.width), *curve]))
    return "\n\n".join(parts)


def group_line(plan: PlanFields, group: Group) -> str:
    """ "90% of 463,792 weights in 33 layers, one budget for all; 46,379 kept at the end"."""
    size = count(budget_size(group), counted(group, many=False))
    end = last_refresh(group, max(0, plan.num_steps - 1))
    kept = kept_in_budget(group, keeps_at(group, end))
    if group.target.is_result:
        return (
            f"what scores below {group.target.limit:g}, of {size} in "
            f"{count(len(group.parameters), 'layer')}; how much that is, is a result"
        )
    shared = "one budget for all" if group.one_budget else "one budget each"
    shared += group.target.told()
    layers = count(len(group.parameters), "layer")
    at_most = "at most " if group.one_budget and len(set(unit_costs(group))) > 1 else ""
    sparsity = group.sparsity if group.before is None else round(sparsity_at(group, end), 6)
    return (
        f"{percent(sparsity)} of {size}{_unit_words(group)} in {layers}, {shared}; "
        f"{at_most}{kept:,} kept at the end"
    )


def before_words(group: Group, plan: PlanFields) -> list[str]:
    """ "first 40% of 128 filters in 3 layers, linear from ...; then, of the weights left," """
    before = group.before
    if before is None:
        return []
    end = last_refresh(group, max(0, plan.num_steps - 1))
    size = count(budget_size(before), counted(before, many=False))
    kept = kept_in_budget(before, keeps_at(before, end))
    schedule = schedule_words(before.schedule, before.sparsity, plan)
    return [
        f"first {percent(before.sparsity)} of {size} in "
        f"{count(len(before.parameters), 'layer')}, one budget each; {kept:,} kept at the end",
        f"  {schedule}",
        f"then {percent(group.sparsity)} of the weights that they leave, together",
    ]


def _unit_words(group: Group) -> str:
    """The units that are pruned as a whole, if the budget does not count them."""
    unit = group.unit
    if group.pattern is not None:
        return f", {group.pattern.n} of every {group.pattern.m} inputs kept,"
    if isinstance(unit, Block):
        size = f" of {unit.height} x {unit.width}"
        return size if group.of == "units" else f", {unit.together} together,"
    return "" if unit.single or group.of == "units" else f", whole {unit.together},"


def schedule_words(schedule: Schedule, target: float, plan: PlanFields) -> str:
    """ "linear from 0% at step 0 (epoch 0) to 90% at step 1,000 (epoch 10)"."""
    return schedule.summary(percent(target), lambda step: moment(step, plan))


def course_words(group: Group, plan: PlanFields) -> str:
    """The schedule of a group's share, or of its limit."""
    if group.target.is_result:
        limit = f"the limit {group.target.limit:g}"
        return group.schedule.summary(limit, lambda step: moment(step, plan))
    return schedule_words(group.schedule, group.sparsity, plan)


def floor_words(group: Group) -> str:
    """ "1 weight per layer"; with a ceiling also what it allows."""
    noun = group.unit.noun
    sizes = num_units(group)
    words = f"1 {noun} per layer"
    if any(floor != 1 for floor in group.floors):
        shares = [floor / max(1, size) for floor, size in zip(group.floors, sizes, strict=True)]
        least = percent(round(min(shares), 4))
        words = f"{count(sum(group.floors), noun)}, at least {least} of a layer"
    if group.filter_floors:
        of_filters = {floor.least for floor in group.filter_floors}
        most = f" to {max(of_filters):,}" if len(of_filters) > 1 else ""
        words += f", {min(of_filters):,}{most} of each filter"
    if group.ceilings:
        shares = [most / max(1, size) for most, size in zip(group.ceilings, sizes, strict=True)]
        words += f", ceiling {percent(round(max(shares), 4))} of a layer"
    for some in group.bounds:
        size = sum(sizes[i] for i in some.members)
        low, high = (percent(round(n / size, 4)) for n in (some.floor, some.ceiling))
        words += f", {some.name} together {low} to {high}"
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
