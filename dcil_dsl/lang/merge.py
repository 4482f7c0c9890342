"""A recipe and the one it extends, as one file.

In:   ast.File and the folder that `extends` is relative to.
Out:  one File: settings merged by key, `let` and `layers` replaced by name, rules appended,
      `mix` and `expect` replaced whole.
Not:  no names are resolved. What is wrong with a parent as a text is its own RecipeError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dcil_dsl.diagnostics import Diagnostic, Diagnostics, Label, RecipeError, Source
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast

MAX_PARENTS = 8  # of parents of parents: deeper than anybody can follow
MOST_BYTES = 2_000_000  # of a recipe; a thousand times as long as a long one
MOST_QUOTED = 3  # lines of a parent that does not parse: it may be any file of the machine


class Unreadable(Exception):
    """A file cannot be read; the message says why."""


def read(path: Path, is_parent: bool = False) -> str:
    """The text of a recipe file.

    Raises Unreadable where it cannot be read, RecipeError (E110) where it is not UTF-8.
    """
    return decode(read_bytes(path, is_parent), str(path))


def read_bytes(path: Path, is_parent: bool = False) -> bytes:
    """At most MOST_BYTES of a file, or Unreadable.

    What a command names may be a pipe, such as /dev/stdin; a parent is a regular file, for a
    recipe must not make its reader wait.
    """
    try:
        mode = os.stat(path).st_mode
        if is_parent and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Unreadable("it is a pipe or a device and no regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(reason.lower()) from None
    if len(content) > MOST_BYTES:
        raise Unreadable(f"it is larger than {MOST_BYTES // 1_000_000} MB")
    return content


def decode(content: bytes, name: str) -> str:
    """The text of a recipe's bytes; a leading byte order mark is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        from dcil_dsl.diagnostics import Span

        source = Source(content.decode("utf-8", "replace"), name)
        start = len(content[: error.start].decode("utf-8", "replace"))
        wrong = Diagnostics()
        wrong.add(
            "E110",
            "the recipe is not UTF-8 text",
            Span(source, start, start + 1),
            label=f"byte 0x{content[error.start]:02x}",
            help="save it as plain UTF-8 text",
        )
        raise RecipeError(wrong.errors) from None


def with_parents(file: ast.File, folder: Path | None, found: Diagnostics) -> ast.File:
    """The file with everything it extends; duplicates in each file are noted."""
    files, at = [file], folder
    seen = {_key(folder, file.source.name)}
    while files[-1].extends is not None:
        parent, at = _parent(files[-1].extends, at, seen, len(files))
        files.append(parent)
    for one in files:
        _duplicates(one, found)
    merged = files.pop()
    while files:
        merged = _merged(merged, files.pop())
    return merged


def _parent(extends: ast.Literal, folder: Path | None, seen: set, depth: int):
    from dcil_dsl.lang.build import build_file
    from dcil_dsl.lang.parse import parse_text

    wrong = Diagnostics()
    if folder is None:
        wrong.add(
            "E201",
            "a recipe given as text has no folder to find its parent in",
            extends.span,
            help="give `loads` the argument `folder`",
        )
        wrong.stop_if_wrong()
    path = Path(os.path.normpath(folder / extends.value))
    if _key(path.parent, path.name) in seen:
        wrong.add(
            "E202", f"`{extends.value}` extends itself, directly or through others", extends.span
        )
    elif depth > MAX_PARENTS:
        wrong.add("E203", f"more than {MAX_PARENTS} recipes extend each other", extends.span)
    wrong.stop_if_wrong()
    seen.add(_key(path.parent, path.name))
    try:
        text = read(path, is_parent=True)
    except Unreadable as error:
        wrong.add(
            "E201",
            f"the parent `{extends.value}` cannot be read: {error}",
            extends.span,
            label=f"looked for {path}",
            help=did_you_mean(extends.value, recipes_in(path.parent)),
        )
        wrong.stop_if_wrong()
    try:
        return build_file(parse_text(Source(text, str(path), path.parent))), path.parent
    except RecipeError as error:
        raise RecipeError(_some(error.diagnostics, extends)) from None


def _some(errors: list[Diagnostic], extends: ast.Literal) -> list[Diagnostic]:
    """The errors of a parent that quote MOST_QUOTED of its lines, and how many more there are."""
    shown, lines = [], set()
    for error in errors:
        lines |= {error.span.line, *(label.span.line for label in error.others)}
        if len(lines) > MOST_QUOTED:
            break
        shown.append(error)
    more = len(errors) - len(shown)
    if more:
        least = "at least " if len(errors) >= MAX_ERRORS else ""
        message = f"the parent `{extends.value}` is no recipe: {least}{count(more, 'more error')}"
        shown.append(Diagnostic("E201", message, extends.span))
    return shown


def _key(folder: Path | None, name: str) -> object:
    if folder is None:
        return name
    try:
        return (folder / Path(name).name).resolve()
    except (OSError, ValueError, RuntimeError):
        return (folder, name)


def recipes_in(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.glob("*.prune"))
    except (OSError, ValueError):
        return []


def _merged(parent: ast.File, child: ast.File) -> ast.File:
    """The child's items laid over the parent's."""
    mine = {_slot(item): item for item in child.items if _slot(item)}
    items: list[ast.Item] = []
    for item in parent.items:
        over = mine.pop(_slot(item), None) if _slot(item) else None
        items.append(item if over is None else _over(item, over))
    added = [item for item in child.items if _slot(item) is None or _slot(item) in mine]
    return replace(child, extends=None, items=(*items, *added))


def _slot(item: ast.Item) -> tuple[str, str] | None:
    """What an item replaces or joins in its parent; None for rules, which are appended."""
    match item:
        case ast.Block(kind=kind):
            return "block", kind
        case ast.Let(name=name) | ast.Layers(name=name):
            return type(item).__name__, name.name
        case ast.Mix() | ast.Expect():
            return type(item).__name__, ""
    return None


def _over(item: ast.Item, over: ast.Item) -> ast.Item:
    if not isinstance(item, ast.Block):
        return over
    mine = {s.name.name: s for s in over.settings}
    kept = [mine.pop(s.name.name, s) for s in item.settings]
    return replace(over, settings=(*kept, *mine.values()))


def _duplicates(file: ast.File, found: Diagnostics) -> None:
    """Note what one file says twice; the first stays."""
    first: dict[tuple[str, str], ast.Item] = {}
    for item in file.items:
        slot = _slot(item)
        if slot is not None:
            before = first.setdefault(slot, item)
            if before is not item:
                _twice(found, _title(item), item, before)
        settings = getattr(item, "settings", ())
        _same_names(settings, found)
        for inner in item.items if isinstance(item, ast.Mix) else ():
            _same_names(getattr(inner, "settings", ()), found)


def _same_names(settings: Iterable[ast.Setting], found: Diagnostics) -> None:
    first: dict[str, ast.Setting] = {}
    for setting in settings:
        before = first.setdefault(setting.name.name, setting)
        if before is not setting:
            _twice(found, f"`{setting.name.name}`", setting, before)


def _title(item: ast.Item) -> str:
    match item:
        case ast.Block(kind=kind):
            return f"`{kind}`"
        case ast.Let(name=name) | ast.Layers(name=name):
            return f"`{type(item).__name__.lower()} {name.name}`"
    return f"`{type(item).__name__.lower()}`"


def _twice(found: Diagnostics, what: str, again, before) -> None:
    found.add(
        "E208",
        f"{what} is given twice",
        _head(again),
        others=(Label(_head(before), "given here first"),),
    )


def _head(node):
    """The name of a definition or setting, the keyword of a block."""
    name = getattr(node, "name", None)
    if isinstance(name, ast.Name):
        return name.span
    word = node.kind if isinstance(node, ast.Block) else type(node).__name__.lower()
    return replace(node.span, stop=node.span.start + len(word))
