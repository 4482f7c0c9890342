"""The settings of a rule that are rules themselves: `bounds` and `before`.

In:   ast nodes and the words that were read from them.
Out:  BoundRule, and the PruneRule of whole units that are pruned first; E205, E211, E214, E235 and
      E238 in a Diagnostics.
Not:  no layers.
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Span
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.read import WordReader
from dcil_dsl.lang.selectors import Selectors
from dcil_dsl.words.blocks import PruneBlock
from dcil_dsl.words.granularity import Block, Granularity, Single
from dcil_dsl.words.schedules import Schedule
from dcil_dsl.words.targets import Target, Within
from dcil_dsl.words.units import written


def read_bounds(
    settings: tuple[ast.Setting, ...],
    words: tuple[Within, ...],
    target: Target,
    selectors: Selectors,
    reader: WordReader,
) -> tuple[r.BoundRule, ...]:
    """The bounds of layers together, each with the layers that it names."""
    given = next((s.value for s in settings if s.name.name == "bounds"), None)
    nodes = given.items if isinstance(given, ast.List) else ()
    bounds = []
    for word, node in zip(words, nodes, strict=True):
        assert isinstance(node, ast.Call)
        place = next(
            a.value.span for a in node.arguments if a.name is None or a.name.name == "layers"
        )
        if not target.one_budget:
            reader.found.add(
                "E238",
                "these layers do not share a budget",
                node.span,
                help="`global(...)` is one budget for all layers of a rule",
            )
        elif word.floor is None and word.ceiling is None:
            reader.found.add(
                "E211",
                "`within` needs `floor` or `ceiling`",
                node.span,
                help=f"for example `within({word.layers}, floor=30%)`",
            )
        elif word.floor and word.ceiling and word.floor > word.ceiling:
            reader.found.add(
                "E214",
                f"the floor {written(word.floor)} is above the ceiling {written(word.ceiling)}",
                node.span,
            )
        selector = selectors.closed(ast.ByName(span=place, name=str(word.layers)))
        bounds.append(
            r.BoundRule(
                name=str(word.layers),
                selector=selector,
                floor=word.floor,
                ceiling=word.ceiling,
                span=node.span,
            )
        )
    return tuple(bounds)


def read_before(
    item: ast.PruneNode,
    word: PruneBlock,
    target: Target,
    granularity: Granularity,
    selector: ast.Selector,
    spans: dict[str, Span],
    reader: WordReader,
) -> r.PruneRule | None:
    """The rule that prunes whole units of the same layers first; E205, E211 and E235."""
    first = word.before
    if first is None:
        if word.before_schedule is not None:
            reader.found.add(
                "E211",
                "`before_schedule` needs `before`",
                spans["before_schedule"],
                help="for example `before = uniform(40%, granularity=filter)`",
            )
        return None
    unit = getattr(first, "granularity", None)
    at = spans["before"]
    if unit is None or unit.single or first.one_budget:
        reader.found.add(
            "E235",
            "`before` prunes whole units of each layer",
            at,
            help="for example `before = uniform(40%, granularity=filter)`",
        )
        return None
    check_block(unit, at, reader)
    if not 0 < first.sparsity.fraction < 1:
        reader.found.add("E205", f"{written(first.sparsity)} of the {unit.noun}s", at)
        return None
    if not isinstance(granularity, Single) or target.pattern is not None:
        reader.found.add(
            "E235",
            f"what `before` leaves is pruned weight by weight, and this rule prunes "
            f"{(target.pattern or granularity).together}",
            at,
        )
    if target.divides or target.needs_layers:
        reader.found.add(
            "E235",
            f"`{target.called}` shares its budget by whole layers, and `before` leaves parts",
            at,
            help="`90%` and `global(90%)` are of what it leaves",
        )
    schedule = word.before_schedule or word.schedule
    where = spans.get("before_schedule", spans.get("schedule", at))
    check_schedule(schedule, first, where, reader)
    return r.PruneRule(
        selector=selector,
        target=first,
        score=word.score,
        schedule=schedule,
        refresh=word.refresh,
        freeze=word.freeze,
        granularity=unit,
        span=item.head_span,
        spans={"target": at, "schedule": where, "freeze": spans.get("freeze", at)},
    )


def check_block(granularity: object, span: Span | None, reader: WordReader) -> None:
    if isinstance(granularity, Block) and granularity.height == granularity.width == 1:
        reader.found.add(
            "E205", "a block of one weight is a single weight", span, help="`granularity=weight`"
        )


def check_schedule(
    schedule: Schedule, target: Target, span: Span | None, reader: WordReader
) -> None:
    """E214 where the target does not fit the schedule."""
    fault = None if target.needs_layers else schedule.fault(target.sparsity)
    if fault is not None:
        reader.found.add("E214", fault[0], span, help=fault[1])
