"""What `--set NAME=VALUE` changes in a recipe.

In:   a merged ast.File and {name: value as text}. A name is a `let`, or `block.setting`.
Out:  the File with those values in place.
Not:  the value's meaning is judged where every other value is, in check.py.

`pruning.refresh` and its like hold for every rule: they also replace what a rule's own block says.
"""

from __future__ import annotations

from dataclasses import replace

from dcil_dsl.diagnostics import Diagnostics, RecipeError, Source, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.words.blocks import BLOCKS

NAME = "--set"  # the source that errors in an override point into


def apply(file: ast.File, overrides: dict[str, str], found: Diagnostics) -> ast.File:
    """Put every override in its place; an unknown name is E222, a bad value E1xx."""
    for name, text in overrides.items():
        source = Source(f"{name}={text}", NAME)
        span = Span(source, 0, len(name))
        try:
            value = _value(source, len(name) + 1)
        except RecipeError as error:
            for diagnostic in error.diagnostics:
                found.note(diagnostic)
            continue
        block, dot, key = name.partition(".")
        if not dot:
            file = _set_let(file, name, value, span, found)
        elif block in BLOCKS and "." not in key:
            file = _set_setting(file, block, key, value, span, found)
        else:
            _unknown(file, name, span, found)
    return file


def _value(source: Source, start: int) -> ast.Value:
    from dcil_dsl.lang.build import build_value
    from dcil_dsl.lang.parse import parse_value

    return build_value(parse_value(source, start), source)


def _set_let(file: ast.File, name: str, value: ast.Value, span: Span, found) -> ast.File:
    if not any(isinstance(i, ast.Let) and i.name.name == name for i in file.items):
        _unknown(file, name, span, found)
        return file
    let = ast.Let(span=value.span, name=ast.Name(span=span, name=name), value=value)
    items = (let if isinstance(i, ast.Let) and i.name.name == name else i for i in file.items)
    return replace(file, items=tuple(items))


def _set_setting(file, kind: str, key: str, value: ast.Value, span: Span, found) -> ast.File:
    known = BLOCKS[kind].model_fields
    if key not in known and kind != "model":  # a model's settings are its builder's own
        _unknown(file, f"{kind}.{key}", span, found)
        return file
    setting = ast.Setting(
        span=Span(span.source, 0, len(span.source.text)),
        name=ast.Name(span=span, name=key),
        value=value,
    )
    items, there = [], False
    for item in file.items:
        if isinstance(item, ast.Block) and item.kind == kind:
            item, there = replace(item, settings=_with(item.settings, setting)), True
        elif isinstance(item, ast.Prune) and kind == "pruning":
            own = tuple(s for s in item.settings if s.name.name != key)
            item = replace(item, settings=own)
        items.append(item)
    if not there:
        if kind not in ("pruning", "train"):
            found.add("E222", f"the recipe has no `{kind}` block to set `{key}` in", span)
            return file
        items.append(ast.Block(span=setting.span, kind=kind, name=None, settings=(setting,)))
    return replace(file, items=tuple(items))


def _with(settings: tuple[ast.Setting, ...], setting: ast.Setting) -> tuple[ast.Setting, ...]:
    name = setting.name.name
    if not any(s.name.name == name for s in settings):
        return (*settings, setting)
    return tuple(setting if s.name.name == name else s for s in settings)


def _unknown(file: ast.File, name: str, span: Span, found: Diagnostics) -> None:
    lets = [i.name.name for i in file.items if isinstance(i, ast.Let)]
    settings = [f"{block}.{key}" for block, model in BLOCKS.items() for key in model.model_fields]
    help = did_you_mean(name, [*lets, *settings])
    if help is None and lets:
        names = ", ".join(f"`{n}`" for n in lets)
        help = f"the recipe's own names are {names}; a setting is written `train.epochs`"
    shown = name if name.isprintable() else ascii(name)
    found.add("E222", f"nothing named `{shown}` can be set", span, help=help)
