"""`--set NAME=VALUE`: values from the command line in the place of those of a recipe.

In:   the file with its parents, and the overrides.
Out:  the file with every override in its place; E222 and E1xx in a Diagnostics.
Not:  no name is replaced and nothing is evaluated (link.py).
"""

from __future__ import annotations

from dataclasses import replace

from dcil_dsl.diagnostics import Diagnostics, RecipeError, Source, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang.build import build_value
from dcil_dsl.lang.parse import parse_value
from dcil_dsl.words.blocks import BLOCKS

SET = "--set"  # the source that errors in an override point into


def override(file: ast.File, overrides: dict[str, str], found: Diagnostics) -> ast.File:
    """Put every override in its place; an unknown name is E222, a bad value E1xx.

    A name is a `let`, `block.setting`, or `block.setting.argument` of a setting that is a call.
    `pruning.refresh` and the like apply to every rule: they also replace the setting of a rule's
    own block.
    """
    for name, text in overrides.items():
        source = Source(f"{name}={text}", SET)
        span = Span(source, 0, len(name))
        try:
            value = build_value(parse_value(source, len(name) + 1), source)
        except RecipeError as error:
            for diagnostic in error.diagnostics:
                found.note(diagnostic)
            continue
        block, dot, key = name.partition(".")
        key, inner, argument = key.partition(".")
        if inner and block in BLOCKS and "." not in argument:
            file = _set_argument(file, block, key, argument, value, span, found)
        elif not dot:
            file = _set_let(file, name, value, span, found)
        elif block in BLOCKS and not inner:
            file = _set_setting(file, block, key, value, span, found)
        else:
            _unknown(file, name, span, found)
    return file


def _set_let(
    file: ast.File, name: str, value: ast.Value, span: Span, found: Diagnostics
) -> ast.File:
    if not any(isinstance(i, ast.Let) and i.name.name == name for i in file.items):
        _unknown(file, name, span, found)
        return file
    let = ast.Let(span=value.span, name=ast.Name(span=span, name=name), value=value)
    items = (let if isinstance(i, ast.Let) and i.name.name == name else i for i in file.items)
    return replace(file, items=tuple(items))


def _set_setting(
    file: ast.File, kind: str, key: str, value: ast.Value, span: Span, found: Diagnostics
) -> ast.File:
    known = BLOCKS[kind].model_fields
    if key not in known and kind != "model":  # a model's settings are its builder's own
        _unknown(file, f"{kind}.{key}", span, found)
        return file
    setting = ast.Setting(
        span=Span(span.source, 0, len(span.source.text)),
        name=ast.Name(span=span, name=key),
        value=value,
    )
    items: list[ast.Item] = []
    exists = False
    for item in file.items:
        if isinstance(item, ast.BlockNode) and item.kind == kind:
            item, exists = replace(item, settings=_with(item.settings, setting)), True
        elif isinstance(item, ast.PruneNode) and kind == "pruning":
            own = tuple(s for s in item.settings if s.name.name != key)
            item = replace(item, settings=own)
        items.append(item)
    if not exists:
        if kind == "recipe":  # it has a name, which nothing here could give it
            found.add("E222", f"the recipe has no `recipe` block to set `{key}` in", span)
            return file
        items.append(ast.BlockNode(span=setting.span, kind=kind, name=None, settings=(setting,)))
    return replace(file, items=tuple(items))


def _set_argument(
    file: ast.File,
    kind: str,
    key: str,
    argument: str,
    value: ast.Value,
    span: Span,
    found: Diagnostics,
) -> ast.File:
    """Put an argument into every call that is this setting: `train.optimizer.lr`."""
    lets = {i.name.name: i.value for i in file.items if isinstance(i, ast.Let)}
    given = ast.Argument(
        span=Span(span.source, 0, len(span.source.text)),
        name=ast.Name(span=span, name=argument),
        value=value,
    )
    num_set = 0

    def changed(setting: ast.Setting) -> ast.Setting:
        nonlocal num_set
        call = setting.value
        if isinstance(call, ast.Name) and call.name in lets:
            call = lets[call.name]
        if setting.name.name != key or not isinstance(call, ast.Call):
            return setting
        num_set += 1
        mine = (a for a in call.arguments if a.name is None or a.name.name != argument)
        return replace(setting, value=replace(call, arguments=(*mine, given)))

    items: list[ast.Item] = []
    for item in file.items:
        is_block = isinstance(item, ast.BlockNode) and item.kind == kind
        if is_block or isinstance(item, ast.PruneNode) and kind == "pruning":
            assert isinstance(item, ast.BlockNode | ast.PruneNode)
            item = replace(item, settings=tuple(changed(one) for one in item.settings))
        items.append(item)
    if not num_set:
        found.add(
            "E222",
            f"the recipe has no call `{kind}.{key}` to set `{argument}` in",
            span,
            help=f"set all of it: `{kind}.{key}=...`" if key in BLOCKS[kind].model_fields else None,
        )
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
