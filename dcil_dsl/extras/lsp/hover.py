"""What is known about the word under the pointer.

In:   an Analysis, an offset.
Out:  Markdown and the place it is about; None where there is nothing to say.
Not:  nothing is computed that the compiler does not: layers, winners and curves are its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dcil_dsl.data.datasets import known_record
from dcil_dsl.diagnostics import Span
from dcil_dsl.diagnostics.codes import CODES, explain
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.lsp.context import Surroundings, context_at
from dcil_dsl.extras.lsp.table import KnownLayer
from dcil_dsl.extras.lsp.tokens import Lexeme
from dcil_dsl.extras.lsp.tree import nodes_at
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.describe import SettingHelp, WordHelp, help_of_word, words_named
from dcil_dsl.lang.statements import CLAUSES, PARTS_SAY, STATEMENTS
from dcil_dsl.plan.text import filled, percent
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.schedules import Schedule
from dcil_dsl.words.units import Percent, Time
from dcil_dsl.words.word import RunLength

MOST_NAMED = 8  # layers of a selector that are listed
COLUMNS, ROWS = 48, 5  # of a curve
# Selectors with a hover of their own; `A, B except C` has one for each part.
SETS = (
    ast.ByType,
    ast.ByGlob,
    ast.ByRegex,
    ast.ByName,
    ast.First,
    ast.Last,
    ast.Inside,
    ast.Having,
)
_CODE = re.compile(r"[EW]\d{3}")


def hover(analysis: Analysis, offset: int) -> tuple[str, int, int] | None:
    """Markdown, start and stop."""
    parts: list[str] = []
    place = _word_at(analysis, offset)
    if place is not None:
        parts += _of_code(analysis.text, place, offset)
        parts += _of_word(analysis, place)
    parts += _of_tree(analysis, offset)
    parts += _of_errors(analysis, offset)
    if not parts:
        return None
    start, stop = (place.start, place.stop) if place is not None else (offset, offset)
    return "\n\n---\n\n".join(dict.fromkeys(parts)), start, stop


def _word_at(analysis: Analysis, offset: int) -> Lexeme | None:
    inside = (one for one in analysis.lexemes if one.start <= offset <= one.stop)
    return max(inside, key=lambda one: (one.kind != "sign", one.start), default=None)


def _of_code(text: str, place: Lexeme, offset: int) -> Iterator[str]:
    """A code in a comment, or anywhere."""
    for match in _CODE.finditer(text, place.start, place.stop):
        if match.start() <= offset <= match.end() and match[0] in CODES:
            yield f"```text\n{explain(match[0])}\n```"


def _of_errors(analysis: Analysis, offset: int) -> Iterator[str]:
    for one in analysis.diagnostics:
        span = one.span
        if span is not None and span.source is analysis.source and one.code in CODES:
            if span.start <= offset <= span.stop:
                yield f"```text\n{explain(one.code)}\n```"


# -- words -------------------------------------------------------------------------------------


def _of_word(analysis: Analysis, place: Lexeme) -> Iterator[str]:
    word = place.text
    if place.kind == "keyword":
        if word in STATEMENTS:
            yield f"```prune\n{STATEMENTS[word].form}\n```\n\n{STATEMENTS[word].says}"
        else:
            yield CLAUSES[word]
        return
    if place.kind != "name":
        return
    context = context_at(analysis.lexemes, place.start)
    follows = analysis.text[place.stop :].lstrip()[:1]
    frame = context.frame
    setting = frame.help_of(word) if frame and follows == "=" else None
    if setting is not None and frame is not None:
        yield _setting(setting, frame.name)
        return
    if context.in_mix and context.statement == "update" and word in PARTS_SAY:
        yield PARTS_SAY[word]
        return
    yield from _of_name(analysis, word, context)


def _of_name(analysis: Analysis, word: str, context: Surroundings) -> Iterator[str]:
    names = analysis.names
    cls = words_at(context.place or "").get(word)
    if word in names.lets:
        yield f"```prune\nlet {word} = {names.lets[word]}\n```"
    elif cls is not None:
        yield word_page(help_of_word(cls))
    elif word in names.paths:
        yield f"```prune\npath {word} = {names.paths[word]}\n```"
    elif word in names.layers:
        yield f"```prune\nlayers {word} = {names.layers[word]}\n```"
    else:
        yield from map(word_page, words_named(word))


def _setting(told: SettingHelp, owner: str) -> str:
    said = f"\n\n{told.meaning}" if told.meaning else ""
    return f"`{told.name}`, a setting of `{owner}`: {told.facts}{said}"


def word_page(told: WordHelp) -> str:
    """A word's documentation as Markdown."""
    parts = [f"**{told.name}**: {told.place}"]
    for text in told.text:
        parts.append(f"```text\n{text}\n```" if text.startswith("    ") else text)
    rows = [
        f"- `{one.name}`: {one.facts}" + (f". {one.meaning}" if one.meaning else "")
        for one in told.settings
    ]
    return "\n\n".join([*parts, "\n".join(rows)] if rows else parts)


# -- selectors, schedules, amounts -------------------------------------------------------------


def _of_tree(analysis: Analysis, offset: int) -> Iterator[str]:
    nodes = nodes_at(analysis.file, offset) if analysis.file is not None else []
    for node in nodes:
        if isinstance(node, SETS):
            yield from _selector(analysis, node)
            break
    for node in nodes:
        if isinstance(node, ast.Literal):
            yield from _amount(analysis, node, nodes)
            break
    yield from _schedule(analysis, offset)


def _selector(analysis: Analysis, node: ast.Selector) -> Iterator[str]:
    matched = analysis.matched
    if matched is None:
        return
    layers = matched.layers(matched.mask(node))
    sized = [layer for layer in layers if layer.prunable]
    head = f"`{node.span.text}` matches {count(len(layers), 'layer')} of {matched.table.spec}"
    weights = sum(layer.size for layer in sized)
    head += f", {count(weights, 'weight')} that can be pruned" if sized else ""
    lines = [f"- {_layer_line(analysis, layer)}" for layer in (sized or layers)[:MOST_NAMED]]
    more = len(sized or layers) - MOST_NAMED
    lines += [f"- and {more} more"] if more > 0 else []
    yield "\n".join([head, "", *lines])


def _layer_line(analysis: Analysis, layer: KnownLayer) -> str:
    shapes = ", ".join(" x ".join(map(str, one.shape)) for one in layer.prunable)
    rule = analysis.matched.rule_of(layer.path) if analysis.matched else None
    taker = ""
    if layer.prunable:
        taker = ": no rule" if rule is None else f": line {rule.span.line}, `{_head(rule)}`"
        if rule is not None and rule.span.source is not analysis.source:
            taker = f": {rule.span.source.name}, `{_head(rule)}`"
    return f"`{layer.path}` {layer.type} {shapes}".rstrip() + taker


def _head(rule: ast.PruneNode | ast.KeepNode) -> str:
    span = rule.head_span if isinstance(rule, ast.PruneNode) else rule.span
    return " ".join(span.text.split())


def _amount(analysis: Analysis, node: ast.Literal, nodes: list[ast.Node]) -> Iterator[str]:
    if isinstance(node.value, Time):
        yield from time_words(analysis, node.value)
    if not isinstance(node.value, Percent) or analysis.matched is None:
        return
    rule = next((one for one in nodes if isinstance(one, ast.PruneNode)), None)
    if rule is None or not _within(node.span, rule.target.span):
        return
    rules = analysis.rules
    number = next((n for n, one in enumerate(rules) if one.span == rule.span), None)
    if number is None:
        return
    taken = analysis.matched.taken(number)
    total = sum(layer.size for layer in taken)
    if total:
        pruned = round(total * node.value.fraction)
        yield (
            f"{percent(node.value.fraction)} of {count(total, 'weight')} in "
            f"{count(len(taken), 'layer')}: about {pruned:,} are pruned, {total - pruned:,} stay"
        )


def _within(inner: Span, outer: Span) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def run_of(analysis: Analysis) -> RunLength | None:
    """The length of the run, as far as the recipe and the record of its data have it."""
    recipe = analysis.recipe
    if recipe is None:
        return None
    record = known_record(recipe.data.name)
    examples = None if record is None else record.num_train
    if examples is None:
        return None
    batches = -(-examples // (recipe.data.batch_size or 128))
    steps = -(-batches // recipe.train.accumulate)
    return RunLength(steps, steps * int(recipe.train.epochs.value), recipe.deploy)


def time_words(analysis: Analysis, time: Time) -> Iterator[str]:
    """A time in other units: in steps where the length of an epoch is known."""
    run, recipe = run_of(analysis), analysis.recipe
    if run is not None:
        step = time.to_steps(run.steps_per_epoch, run.num_steps)
        epoch = step / run.steps_per_epoch
        yield f"step {step:,} of {run.num_steps:,}, epoch {epoch:.4g}"
    elif recipe is not None and time.unit == "run":
        yield f"epoch {time.value * recipe.train.epochs.value:.4g}"


def _schedule(analysis: Analysis, offset: int) -> Iterator[str]:
    """The curve of the schedule that is written here."""
    for rule in analysis.recipe.rules if analysis.recipe else ():
        if not isinstance(rule, r.PruneRule) or "schedule" not in rule.spans:
            continue
        span = rule.spans["schedule"]
        if span.source is analysis.source and span.start <= offset <= span.stop:
            yield curve(analysis, rule.schedule, rule.target)
            return


def curve(analysis: Analysis, schedule: Schedule, target: object) -> str:
    """A drawing: sparsity over the run, in block characters."""
    recipe = analysis.recipe
    assert recipe is not None
    epochs = int(recipe.train.epochs.value)
    run = run_of(analysis) or RunLength(1000, 1000 * epochs, recipe.deploy)
    share = getattr(target, "sparsity", None)
    # Of a target that needs the layers, or the scores, the course alone is known.
    final = share.fraction if isinstance(share, Percent) and share.fraction else 1.0
    placed = schedule.in_steps(run)
    steps = [run.num_steps * (2 * i + 1) // (2 * COLUMNS) for i in range(COLUMNS)]
    values = [placed.sparsity(step, final) for step in steps]
    top = max(*values, 1e-9)
    rows = filled([value / top for value in values], ROWS, unicode=True)
    left = [percent(round(top, 3)), *[""] * (ROWS - 2), "0%"]
    drawn = [f"{label:>6} |{row}" for label, row in zip(left, rows, strict=True)]
    axis = f"{'':6} +{'-' * COLUMNS}\n{'':8}0{f'{epochs} epochs':>{COLUMNS - 1}}"
    return "```text\n" + "\n".join(drawn) + f"\n{axis}\n```"
