"""What can be typed at a place: words, settings, names, units, and the layers of the model.

In:   an Analysis of the text, which may be broken at that place; an offset.
Out:  completion items of the protocol, each with a line of documentation.
Not:  no order of preference but that of the lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lsprotocol.types import (
    CompletionItem,
    CompletionItemKind,
    InsertTextFormat,
    MarkupContent,
    MarkupKind,
    TextEdit,
)

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.lsp.analysis import Analysis, Rule
from dcil_dsl.extras.lsp.context import IN_MIX, Surroundings, context_at
from dcil_dsl.extras.lsp.table import KnownLayer
from dcil_dsl.lang.describe import SettingHelp, WordHelp, help_of_word
from dcil_dsl.lang.selectors import TYPES, Glob
from dcil_dsl.lang.statements import CLAUSES, PARTS_SAY, STATEMENTS
from dcil_dsl.lang.tokens import recipes_in
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.registry import words_at

UNITS = {
    "ep": "epochs",
    " steps": "optimizer steps",
    "% run": "a share of the run",
    "%": "a percentage",
}
KINDS = CompletionItemKind
_STRING_START = re.compile(r'(re)?"([^"\n]*)$')
_AMOUNT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?([ \t]?[a-z%]*)$")
AFTER_SELECTOR = ("to", "except", "where", "in")
SELECTS = ("prune", "keep", "private", "except", "first", "last")


def complete(analysis: Analysis, offset: int) -> list[CompletionItem]:
    """Everything that may stand at the offset; nothing inside a comment."""
    text = analysis.text
    line = text[text.rfind("\n", 0, offset) + 1 : offset]
    outside = re.sub(r'"[^"]*"', "", line)
    if "#" in outside.partition('"')[0]:
        return []
    if outside.count('"') % 2:
        return list(_in_string(analysis, offset, line))
    amount = _AMOUNT.search(line)
    if amount is not None:
        return [_unit(analysis, offset, amount[1], unit) for unit in UNITS]
    found = re.search(r"\w*$", line)
    start = offset - len(found[0]) if found else offset
    context = context_at(analysis.lexemes, start)
    return list(_unique(_items(analysis, context)))


def _unit(analysis: Analysis, offset: int, typed: str, unit: str) -> CompletionItem:
    start = offset - len(typed)
    edit = TextEdit(analysis.lines.range(start, offset), unit)
    number = analysis.text[:start]
    amount = re.search(r"[\d.]+$", number)
    label = f"{amount[0] if amount else ''}{unit}"
    # Editors filter by the text that the edit replaces.
    return CompletionItem(
        label, kind=KINDS.Unit, detail=UNITS[unit], text_edit=edit, filter_text=typed or None
    )


def _unique(items: Iterable[CompletionItem]) -> Iterator[CompletionItem]:
    seen: set[str] = set()
    for item in items:
        if item.label not in seen:
            seen.add(item.label)
            yield item


# -- outside of strings ------------------------------------------------------------------------


def _items(analysis: Analysis, context: Surroundings) -> Iterator[CompletionItem]:
    frame = context.frame
    if frame is None:
        yield from _top(analysis, context)
    elif frame.kind == "{" and frame.name == "mix":
        yield from _mix(analysis, context)
    elif frame.kind == "{" and frame.name == "expect":
        yield from (_item(name, KINDS.Constant, "a metric") for name in METRICS)
    elif frame.kind == "{" and context.last not in ("=", "+", "-", "*", "/", ".."):
        yield from _settings(frame.told, frame.given, " = ")
    elif frame.kind == "(" and frame.setting is None and context.last in ("(", ","):
        yield from _values(analysis, context, frame.current)
        yield from _settings(frame.told, frame.given, "=")
    else:
        yield from _values(analysis, context, frame.current)


def _top(analysis: Analysis, context: Surroundings) -> Iterator[CompletionItem]:
    if (
        context.clause in SELECTS
        or context.last == ","
        or (context.statement == "layers" and context.last == "=")
    ):
        yield from _selectors(analysis)
        if context.last in (*SELECTS, ",", "="):
            return
    if context.clause == "to" and context.last == "to":
        yield from _words("a target")
        yield from _lets(analysis)
        return
    if context.statement == "let" and context.last == "=":
        yield from _lets(analysis)
        return
    if context.clause in ("where", "and"):
        yield from _attributes(analysis)
    if context.statement in ("prune", "keep", "layers"):
        yield from (_keyword(word) for word in AFTER_SELECTOR)
    yield from (_keyword(word) for word in STATEMENTS if word not in IN_MIX)


def _mix(analysis: Analysis, context: Surroundings) -> Iterator[CompletionItem]:
    names, clause, last = analysis.names, context.clause, context.last
    if clause == "update" and last in ("update", ","):
        yield from (_item(one, KINDS.EnumMember, says) for one, says in PARTS_SAY.items())
        return
    if clause == "deploy" or clause == "by" and last in ("by", "+", "*"):
        yield from (_item(name, KINDS.Variable, view) for name, view in names.paths.items())
        return
    if clause == "=" and context.statement == "path":
        yield from _words("a view")
        yield from _words("a teacher")
        return
    if clause in ("private", "except", "first", "last") and last in (*SELECTS, ","):
        yield from _selectors(analysis)
        return
    if context.statement == "loss" and last in ("loss", "*"):
        yield from _words("a loss")
        return
    if clause in ("from", "until") and last in ("from", "until"):
        yield from _lets(analysis)
        return
    if context.statement == "update":
        yield from (_keyword(word) for word in ("by", "from", "until"))
    if context.statement == "loss":
        yield from (_keyword(word) for word in ("from", "until"))
    yield from (_keyword(word) for word in IN_MIX)


def _values(
    analysis: Analysis, context: Surroundings, setting: SettingHelp | None
) -> Iterator[CompletionItem]:
    """What a setting takes."""
    place = context.place
    if place is not None:
        yield from _words(place)
    if setting is not None:
        yield from (_item(one, KINDS.EnumMember, setting.name) for one in setting.choices)
        if "`true`" in setting.type:
            yield from (_keyword(word) for word in ("true", "false"))
        if setting.type == "a path":
            paths = analysis.names.paths.items()
            yield from (_item(name, KINDS.Variable, view) for name, view in paths)
        if setting.type == "a name of layers":
            layers = analysis.names.layers.items()
            yield from (_item(name, KINDS.Variable, text) for name, text in layers)
        if setting.default == "none":
            yield _keyword("none")
    yield from _lets(analysis)


def _words(place: str) -> Iterator[CompletionItem]:
    for word, cls in words_at(place).items():
        told = help_of_word(cls)
        item = _item(word, KINDS.Function, told.summary, "\n\n".join(told.text))
        if not cls.bare:
            item.insert_text = f"{word}($1)$0"
            item.insert_text_format = InsertTextFormat.Snippet
        yield item


def _settings(told: WordHelp | None, given: set[str], equals: str) -> Iterator[CompletionItem]:
    for one in told.settings if told else ():
        if one.name not in given:
            item = _item(one.name, KINDS.Property, one.facts, one.meaning)
            item.insert_text = f"{one.name}{equals}"
            yield item


def _lets(analysis: Analysis) -> Iterator[CompletionItem]:
    for name, value in analysis.names.lets.items():
        yield _item(name, KINDS.Variable, f"let {name} = {value}")


def _selectors(analysis: Analysis) -> Iterator[CompletionItem]:
    for name, text in analysis.names.layers.items():
        yield _item(name, KINDS.Variable, f"layers {name} = {text}")
    numbers: dict[str, int] = {}
    for layer in analysis.table.layers if analysis.table else ():
        for kind in layer.types:
            numbers[kind] = numbers.get(kind, 0) + 1
    for kind, number in sorted(numbers.items(), key=lambda pair: -pair[1]):
        yield _item(kind, KINDS.Class, count(number, "layer"))
    if not numbers:
        yield from (_item(kind, KINDS.Class, "a class of torch.nn") for kind in TYPES)
    yield from (_keyword(word) for word in ("first", "last"))


def _attributes(analysis: Analysis) -> Iterator[CompletionItem]:
    for layer in analysis.table.layers if analysis.table else ():
        if layer.prunable:
            for name, value in vars(layer.module).items():
                if name[0] != "_":
                    yield _item(name, KINDS.Field, f"{layer.path}: {value!r}")


def _keyword(word: str) -> CompletionItem:
    if word in STATEMENTS:
        return _item(word, KINDS.Keyword, STATEMENTS[word].form, STATEMENTS[word].says)
    return _item(word, KINDS.Keyword, CLAUSES.get(word))


def _item(
    label: str, kind: CompletionItemKind, detail: str | None, says: str | None = None
) -> CompletionItem:
    documentation = MarkupContent(MarkupKind.Markdown, says) if says else None
    return CompletionItem(label, kind=kind, detail=detail or None, documentation=documentation)


# -- inside of strings -------------------------------------------------------------------------


def _in_string(analysis: Analysis, offset: int, line: str) -> Iterator[CompletionItem]:
    found = _STRING_START.search(line)
    if found is None or found[1]:
        return  # a regular expression matches names; it does not list them
    typed = found[2]
    start = offset - len(typed)
    context = context_at(analysis.lexemes, start - 1)
    if context.last == "extends":
        folder = analysis.source.folder
        for name in recipes_in(folder) if folder is not None else ():
            if name != Path(analysis.source.name).name:
                yield _path(analysis, start, offset, name, "a recipe", KINDS.File)
    elif _names_layers(context):
        yield from _layer_names(analysis, start, offset, typed)


def _names_layers(context: Surroundings) -> bool:
    words = (*SELECTS, "in", "layers")
    is_clause = context.clause in words or context.last == ","
    return (is_clause or context.statement == "layers") and (
        context.frame is None or context.frame.name == "mix"
    )


def _layer_names(
    analysis: Analysis, start: int, offset: int, typed: str
) -> Iterator[CompletionItem]:
    """The next names below what is typed so far: one segment of the path a time.

    A segment typed as a pattern stays one: below `layer?.` come the names in any of them.
    """
    matched = analysis.matched
    if matched is None:
        return
    above, dot, _ = typed.rpartition(".")
    pattern = Glob(above) if above else None
    depth = above.count(".") + 2 if dot else 1
    found: dict[str, int] = {}
    for path in matched.selection.inside:
        names = path.split(".")
        if len(names) != depth or "**" in above:
            continue
        if pattern is None or pattern.matches(".".join(names[:-1])):
            label = f"{above}{dot}{names[-1]}"
            found[label] = found.get(label, 0) | matched.selection.inside[path]
    for label, mask in found.items():
        layers = matched.layers(mask)
        whole = [layer for layer in layers if layer.prunable]
        if len(layers) == 1 and layers[0].path == label:
            (layer,) = layers
            shapes = ", ".join(" x ".join(map(str, one.shape)) for one in layer.prunable)
            detail = f"{layer.type} {shapes}".rstrip()
        else:
            detail = f"{count(len(layers), 'layer')}, {len(whole)} with weights"
        rules = dict.fromkeys(
            rule.span.text.split("{")[0].strip() for rule in _takers(analysis, whole)
        )
        item = _path(analysis, start, offset, label, detail, KINDS.Module)
        item.sort_text = f"{matched.selection.place.get(label, len(found)):06d}{label}"
        taken = "; ".join(list(rules)[:3])
        says = f"taken now by `{taken}`" if taken else "taken by no rule"
        item.documentation = MarkupContent(MarkupKind.Markdown, says) if whole else None
        yield item


def _takers(analysis: Analysis, layers: list[KnownLayer]) -> Iterator[Rule]:
    for layer in layers:
        rule = analysis.matched.rule_of(layer.path) if analysis.matched else None
        if rule is not None:
            yield rule


def _path(
    analysis: Analysis, start: int, stop: int, label: str, detail: str, kind: CompletionItemKind
) -> CompletionItem:
    edit = TextEdit(analysis.lines.range(start, stop), label)
    return CompletionItem(label, kind=kind, detail=detail, text_edit=edit, filter_text=label)
