"""Explain one layer: which rule applies, and how its weights are pruned over the run.

In:   the name of a layer; the recipe, the traced model and the resulting Plan.
Out:  text no wider than the page; InputError where no layer has this name.
Not:  no decisions: the rules are evaluated again, all else is in the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import wrap

from dcil_dsl.diagnostics import Diagnostics, InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.selectors import strip_wrapping
from dcil_dsl.model.layers import Layer
from dcil_dsl.model.trace import Traced
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.facts import is_private, kept_at, last_step
from dcil_dsl.plan.group import counted, members, num_units
from dcil_dsl.plan.schedule import last_refresh, reached_at, sparsity_at
from dcil_dsl.plan.select import Selection
from dcil_dsl.plan.show import (
    before_words,
    course_words,
    dynamics_words,
    group_line,
    refresh_words,
    share_of,
    short_name,
)
from dcil_dsl.plan.show_training import PARTS, seen_words, teachers
from dcil_dsl.plan.text import (
    PLAIN,
    Page,
    draw_schedule,
    moment,
    percent,
    shorten,
    stretch,
    table,
)
from dcil_dsl.plan.units import tensor_core_obstacle
from dcil_dsl.words.granularity import Pattern
from dcil_dsl.words.schedules import Constant
from dcil_dsl.words.views import Full, Masked

LABEL = 12  # columns of the label at the left
MANY = 6  # layers that are named one by one
COMMENT = re.compile(r'("[^"\n]*")|#[^\n]*')

Fact = tuple[str, str]  # a label and a sentence


def explain_layer(
    name: str, recipe: r.Recipe, traced: Traced, plan: p.Plan, page: Page = PLAIN
) -> str:
    """Everything that is decided about the layer `name`.

    `module.` before the name and `.weight` after it may be written, as in selectors.
    """
    layer = find_layer(name, traced)
    planned = [entry for entry in plan.layers if entry.parameter in layer.weights]
    groups = {entry.group: plan.groups[entry.group] for entry in planned if entry.group is not None}
    parts = [
        _lines(_what_it_is(layer, planned, traced, plan), page),
        _rules(layer, recipe, traced, page),
    ]
    for group in groups.values():
        own = [entry for entry in planned if entry.parameter in group.parameters]
        parts += [_lines(_budget(own, group, plan), page), "\n".join(_moments(own, group, plan))]
        if not isinstance(group.schedule, Constant) and not group.target.is_result:
            parts.append("\n".join(draw_schedule(group, plan, page)))
    if planned or layer.module._parameters:  # a container owns nothing that a path could see
        parts.append(_lines(_who_sees_it(layer, planned, plan), page))
    return "\n\n".join(part for part in parts if part) + "\n"


def find_layer(name: str, traced: Traced) -> Layer:
    """The layer of this name. InputError that says what the name is instead, or the nearest."""
    wanted = strip_wrapping(name)
    layers = {layer.path: layer for layer in traced.layers}
    by_weight = {weight: layer for layer in traced.layers for weight in layer.weights}
    layer = layers.get(wanted) or by_weight.get(name) or by_weight.get(wanted)
    if layer is not None:
        return layer
    inside = [path for path in layers if path.startswith(f"{wanted}.")]
    if inside:
        shown = ", ".join(inside[:MANY]) + (", ..." if len(inside) > MANY else "")
        raise InputError(
            f"`{wanted}` is not a layer of {traced.name}; it contains {len(inside)}", help=shown
        )
    if wanted in dict(traced.model.named_modules()):
        raise InputError(f"the forward of {traced.name} never uses `{wanted}`")
    near = nearest(wanted, layers)
    raise InputError(
        f"{traced.name} has no layer `{wanted}`",
        help=f"did you mean `{near}`?" if near else "`dcil plan` lists the layers",
    )


# -- what it is --------------------------------------------------------------------------------


def _what_it_is(
    layer: Layer, planned: list[p.PlanLayer], traced: Traced, plan: p.Plan
) -> Iterator[Fact]:
    yield layer.path or "the model", f"{layer.type}({layer.module.extra_repr()})"
    total = sum(entry.num_weights for entry in plan.layers)
    macs = sum(entry.macs or 0 for entry in plan.layers)
    for entry in planned:
        shape = " x ".join(map(str, entry.shape))
        share = f"{_part(entry.num_weights, total)} of all that can be pruned"
        weights = count(entry.num_weights, "weight")
        yield "weight", f"{entry.parameter}, {shape} = {weights}, {share}"
        if entry.macs is not None and macs:
            yield (
                "arithmetic",
                (
                    f"{entry.macs:,} multiply-accumulates per example, "
                    f"{_part(entry.macs, macs)} of the model's"
                ),
            )
    if not planned:
        yield (
            "weight",
            (
                "its weight is made of other parameters at each call and cannot be masked"
                if layer.hides_weight
                else "it has none of its own that could be pruned"
            ),
        )
        inside = _inside(layer, traced)
        if inside:
            yield "inside", f"layers that are explained alone: {_names(inside)}"
    place = 1 + [other.path for other in traced.layers].index(layer.path)
    yield (
        "place",
        (f"number {place} of {count(len(traced.layers), 'module')}, in the order of first use"),
    )
    reasons = {entry.module: entry.reason for entry in plan.opaque}
    if layer.called in reasons:
        here = "the whole model" if not layer.called else f"`{layer.called}`"
        yield "graph", f"inside {here}, which stays opaque in the graph: {reasons[layer.called]}"
    elif layer.called != layer.path:
        yield "graph", f"inside `{layer.called}`, which stays opaque in the graph"
    else:
        yield "graph", "traced: the graph calls it itself"
    for weight in layer.prunable:
        obstacle = tensor_core_obstacle(weight, Pattern(n=2, m=4))
        yield (
            "2:4",
            (
                f"sparse tensor cores do not run it: {obstacle}"
                if obstacle
                else "sparse tensor cores run this pattern in it"
            ),
        )
    ties = _tied(layer, traced)
    if ties:
        yield "tied", f"its weight is also that of {_names(ties)}: one mask, one budget for all"


def _inside(layer: Layer, traced: Traced) -> list[str]:
    start = f"{layer.path}." if layer.path else ""
    return [
        other.path
        for other in traced.layers
        if other.prunable and other.path != layer.path and other.path.startswith(start)
    ]


def _tied(layer: Layer, traced: Traced) -> list[str]:
    return [
        other.path
        for other in traced.layers
        if other.path != layer.path and set(other.weights) & set(layer.weights)
    ]


# -- who decided -------------------------------------------------------------------------------


def _rules(layer: Layer, recipe: r.Recipe, traced: Traced, page: Page) -> str:
    """Every rule in order, whether it selects the layer, and which one wins."""
    if not layer.prunable:
        return ""
    selection = Selection(traced.layers, traced.name, Diagnostics())
    selection.prepare(rule.selector for rule in recipe.rules)
    matched = [selection.mask(rule.selector) for rule in recipe.rules]
    ties = {layer.path, *_tied(layer, traced)}
    tied = sum(1 << selection.place[path] for path in ties)
    claims = [index for index, mask in enumerate(matched) if mask & tied]
    head = "rules in order; the last that matches wins"
    lines = [head]
    for index, (rule, mask) in enumerate(zip(recipe.rules, matched, strict=True)):
        if not mask & tied:
            found = selection.listed(mask)
            verdict = f"no match: it selects {_names([o.path for o in found if o.prunable])}"
        elif index == claims[-1]:
            verdict = "matches and wins"
        else:
            last = recipe.rules[claims[-1]].span
            where = f"line {last.line} is below it"
            if last.source is not rule.span.source:  # of the recipe that extends this one
                where = f"{last.source.name}:{last.line} comes after it"
            verdict = f"matches, but {where} and matches too"
        if mask & tied and not mask >> selection.place[layer.path] & 1:
            through = min(other.path for other in selection.listed(mask & tied))
            verdict += f", through `{through}`, which has the same weight"
        place = f"{rule.span.source.name}:{rule.span.line}"
        lines += wrap(
            f"{place}  {_on_one_line(rule.span.text)}",
            page.width,
            initial_indent="  ",
            subsequent_indent="      ",
        )
        lines += wrap(verdict, page.width, initial_indent="      ", subsequent_indent="      ")
    if not claims:
        lines.append("  no rule matches it; it is not pruned")
    return "\n".join(lines)


# -- how much, and when ------------------------------------------------------------------------


def _budget(own: list[p.PlanLayer], group: p.Group, plan: p.Plan) -> Iterator[Fact]:
    parts = members(group)
    others = len(parts) - 1
    for line in before_words(group, plan):
        yield "before", line
    yield "budget", group_line(plan, group)
    names = {entry.parameter for entry in own}
    mine = [i for i, part in enumerate(parts) if names & set(part)]
    if group.target.is_result:
        yield "", "its scores decide how much it loses"
    elif group.one_budget and others:
        yield (
            "",
            (f"shared with {count(others, 'other layer')}: the scores decide its share"),
        )
    elif others:
        share = percent(share_of(group, own[0].parameter))
        yield "", f"a budget of its own, as each of the {len(parts)} layers has: it loses {share}"
    for index in mine:
        units, floor = num_units(group)[index], group.floors[index]
        noun = counted(group, many=False) if group.of != "flops" else "unit"
        yield "floor", f"it keeps at least {floor:,} of {count(units, noun)}"
        if group.filter_floors:
            each = group.filter_floors[index]
            filters = count(each.cut.num_units, "filter")
            yield "", f"and {count(each.least, 'weight')} of each of its {filters}"
        yield from _tied_filters(own, group, index)
        if group.ceilings and group.ceilings[index] < units:
            yield "ceiling", f"it keeps at most {group.ceilings[index]:,} of them in the end"
    yield "score", group.score.summary()
    yield "schedule", course_words(group, plan)
    freeze = "never freeze" if group.freeze is None else f"freeze at {moment(group.freeze, plan)}"
    last = last_refresh(group, last_step(plan))
    yield (
        "masks",
        (f"move {refresh_words(group)}, the last time at {moment(last, plan)}; they {freeze}"),
    )
    for line in dynamics_words(group, plan):
        yield "weights", line


def _tied_filters(own: list[p.PlanLayer], group: p.Group, index: int) -> Iterator[Fact]:
    """What the filters of a member are tied to, or bound by."""
    if not group.ties:
        return
    tie, names = group.ties[index], {entry.parameter for entry in own}
    others = [short_name(name) for name in tie.filters_of_unit if name not in names]
    if others:
        yield "ties", f"they go and stay with filters of {_names(others)}"
    if tie.bound:
        yield "bound", f"none of them goes: {tie.bound}"


def _moments(own: list[p.PlanLayer], group: p.Group, plan: p.Plan) -> list[str]:
    """The group's sparsity and the layer's kept weights, at the steps where something changes."""
    end = last_step(plan)
    reached = reached_at(group)
    steps = {0, reached, end, *(phase.window.start for phase in plan.phases)}
    steps |= set(group.schedule.turns)
    if group.freeze is not None:
        steps.add(group.freeze)
    size = sum(entry.num_weights for entry in own)
    rows = []
    for step in sorted(step for step in steps if 0 <= step <= end):
        kept = [kept_at(group, step)[entry.parameter] for entry in own]
        left = f"{sum(filter(None, kept)):,} of {size:,}"
        left = "by its scores" if None in kept else left
        stand = group.freeze is not None and step >= group.freeze
        in_force = sparsity_at(group, last_refresh(group, step))
        rows.append(
            (
                f"{step:,}",
                f"{step / max(1, plan.steps_per_epoch):.4g}",
                "a result" if group.target.is_result else percent(round(in_force, 4)),
                left,
                "stand still" if stand else "move",
            )
        )
    return table(("step", "epoch", "asked", "it keeps", "masks"), rows, "rrrrl")


# -- who learns from whom ----------------------------------------------------------------------


def _who_sees_it(layer: Layer, planned: list[p.PlanLayer], plan: p.Plan) -> Iterator[Fact]:
    if is_private(layer.path, plan):
        yield from _private(layer, plan)
        return
    is_pruned = any(entry.group is not None for entry in planned)
    for path in plan.paths:
        more = {Masked: ", its pruned weights as zeros", Full: ", all of it"}
        sees = seen_words(path) + more.get(type(path.view), "")
        sees = sees if is_pruned else "w, all of it: no rule prunes it"
        deployed = "; this is the path that is deployed" if path.name == plan.deploy else ""
        yield f"{path.name} sees", sees + deployed
    if not any(True for _ in layer.module.parameters()):
        yield "learning", "it has no parameters"
        return
    own = next((e.group for e in planned if e.group is not None), None)
    has_reserve = own is not None and plan.groups[own].reserve
    held = ("kept", "reserve", "pruned") if has_reserve else ("kept", "pruned")
    parts = (*held, "rest") if is_pruned else ("rest",)
    for phase in plan.phases:
        label = stretch(phase.window, plan)
        for part in parts:
            whose = "its biases" if is_pruned and part == "rest" else PARTS[part]
            whose = whose if is_pruned else "its weights"
            if whose == "its biases" and getattr(layer.module, "bias", None) is None:
                continue
            yield "learning", f"{label}: {whose} {teachers(plan, phase, part)}"


def _private(layer: Layer, plan: p.Plan) -> Iterator[Fact]:
    entry = next(
        private for private in plan.privates if f"{layer.path}.".startswith(f"{private.module}.")
    )
    rest = layer.path[len(entry.module) :]
    twins = [f"{entry.module}__{q.name}{rest}" for q in plan.paths if q.name != plan.deploy]
    start = "as a copy of it" if entry.init == "copy" else "fresh, with random weights"
    yield "private", f"path {plan.deploy} has it under its own name and is the one deployed"
    for twin, path in zip(twins, [q for q in plan.paths if q.name != plan.deploy], strict=True):
        yield "", f"path {path.name} has a twin, `{twin}`, which starts {start}"
    for phase in plan.phases:
        yield (
            "learning",
            (
                f"{stretch(phase.window, plan)}: on each of {', '.join(phase.paths)} from that "
                "path alone"
            ),
        )


# -- words -------------------------------------------------------------------------------------


def _part(number: int, total: int) -> str:
    """Two digits of a percentage: 0.57%, 5.7%, 57%, and 100%."""
    share = 100 * number / max(1, total)
    return f"{share:.2g}%" if share < 99.5 else "100%" if number == total else ">99%"


def _on_one_line(statement: str) -> str:
    """Without its comments; a `#` in quotes begins none."""
    return " ".join(COMMENT.sub(lambda found: found[1] or "", statement).split())


def _names(paths: list[str]) -> str:
    if not paths:
        return "nothing"
    if len(paths) > MANY:
        return f"{len(paths)} other layers, {paths[0]} to {paths[-1]}"
    return ", ".join(f"`{path}`" for path in paths)


def _lines(facts: Iterator[Fact], page: Page) -> str:
    """A label at the left, the text next to it; a repeated label is printed once."""
    lines, before = [], None
    for label, text in facts:
        shown = "" if label == before else label
        before = label
        if len(shown) > LABEL:
            lines.append(shorten(shown, page.width))
            shown = ""
        rest = " " * (LABEL + 1)
        lines += wrap(text, page.width, initial_indent=f"{shown:{LABEL}} ", subsequent_indent=rest)
    return "\n".join(lines)
