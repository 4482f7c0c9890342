"""The layers of a Plan, printed: every one with its rule and target; what stands apart.

In:   a Plan, and the page.
Out:  the table of layers; the modules that were kept opaque and those that no rule can prune.
Not:  show.py puts the parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.budget import members
from dcil_dsl.plan.facts import LayerFacts, layer_facts
from dcil_dsl.plan.plan import Group, Layer, OpaqueModule, Plan, Unprunable
from dcil_dsl.plan.wording import Page, named_table, percent, shorten
from dcil_dsl.words.granularity import Block

MANY = 6  # modules with one reason that are named one by one


def show_layers(plan: Plan, page: Page) -> str:
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


def show_apart(plan: Plan, page: Page) -> str:
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
    """A line a reason, with its modules: often many share one."""
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


def is_whole(layer: Layer, plan: Plan) -> bool:
    """Whether a layer lies in a module that the tracer kept opaque, or is one."""
    return any(
        not entry.module or f"{layer.module}.".startswith(f"{entry.module}.")
        for entry in plan.opaque
    )


def short_name(parameter: str) -> str:
    """ "conv1.weight" -> "conv1", as selectors name it; other parameters keep theirs."""
    return parameter.removesuffix(".weight")


def target_words(plan: Plan, layer: Layer) -> str:
    """ "90%" of a layer by itself, "90% of all" of one that shares its budget, "kept"."""
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
    target = share_of(group, layer.parameter)
    return percent(target) + (f" of {whole.strip()}" if whole else "") + counts


def share_of(group: Group, parameter: str) -> float:
    """The sparsity that is asked of a layer in the end; of one that shares its budget, of all."""
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


def _layer_row(plan: Plan, layer: Layer, fact: LayerFacts, short: bool) -> tuple[str, ...]:
    rule = "-" if layer.rule is None else layer.rule.rpartition("/")[2]
    if short and layer.rule is not None:
        rule = ":" + layer.rule.rpartition(":")[2]
    share = "-" if fact.macs_share is None else f"{100 * fact.macs_share:.1f}%"
    target = target_words(plan, layer) + (", private" if fact.private else "")
    target += ", whole" if is_whole(layer, plan) else ""
    shape = "x".join(str(size) for size in layer.shape)
    name, kind = short_name(layer.parameter), shorten(layer.type, 16)
    return (name, kind, shape, f"{layer.num_weights:,}", share, rule, target)
