"""One closed file from a recipe, its parents, its `let`s and the command line.

In:   ast.File, the folder that `extends` is relative to, the overrides of `--set`.
Out:  Linked: a File without `extends` and `let`, arithmetic evaluated, `layers` still named;
      E114, E2xx and W2xx in a Diagnostics.
Not:  no word is looked up; check.py does that. Syntax errors of a parent are its own RecipeError.

A child's settings are merged by key with its parent's; its `let` and `layers` replace those of the
same name, its rules are appended, its `mix` and `expect` replace the parent's.

A value that cannot be evaluated becomes a Literal of BROKEN, which check.py ignores: each mistake
is reported once, and mistakes elsewhere are still found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from dcil_dsl.diagnostics import Diagnostic, Diagnostics, Label, RecipeError, Source, Span
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.override import SET, override
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.shipped import NoRecipe, file_of, is_shipped
from dcil_dsl.lang.tokens import Unreadable, read, recipes_in
from dcil_dsl.words.units import Percent, Time, UnitError, combine, written

MAX_PARENTS = 8  # levels of `extends`
MOST_QUOTED = 3  # lines quoted of a parent that does not parse: it may be any file of the machine
MOST_VALUES = 100_000  # in the lists and calls that names stand for: each may double another
MAX_NESTED = 60  # levels of lists and calls; they are walked by recursion
MAX_CHAIN = 100  # names that stand for names

N = TypeVar("N", bound=ast.Node)


@dataclass(frozen=True)
class Linked:
    """`layers`: every definition, not yet put into the selectors that name it.

    `lets`: where each `let` is defined, for suggestions; their values are in place already.
    `parent`: what the file extends, with its own parents, not closed yet.
    """

    file: ast.File
    layers: dict[str, ast.Layers]
    lets: dict[str, Span]
    parent: ast.File | None = None


def read_saved(path: Path) -> str:
    """The text of a parent as the disk has it."""
    return read(path, is_parent=True)


def link(
    file: ast.File,
    folder: Path | None,
    overrides: dict[str, str],
    found: Diagnostics,
    read_parent: Callable[[Path], str] = read_saved,
) -> Linked:
    """Close a file; RecipeError at once if a parent is missing or cannot be read.

    read_parent  the text of a parent, Unreadable where there is none; an editor has newer ones
    """
    file, parent = _with_parents(file, folder, found, read_parent)
    file = override(file, overrides, found)
    lets = {item.name.name: item for item in file.items if isinstance(item, ast.Let)}
    scope = _Scope(lets, found)
    items = tuple(scope.closed(item) for item in file.items if not isinstance(item, ast.Let))
    used = sorted(scope.used)  # evaluating an unused one below counts as a use
    num_unused = 0
    for let in lets.values():
        if let.name.name not in scope.used and let.span.source.name != SET:
            scope.value_of(let.name)  # its errors count although nothing uses it
            num_unused += 1
            found.add(
                "W201",
                f"`let {let.name.name}` is never used",
                let.name.span,
                help=did_you_mean(let.name.name, used) if num_unused <= MAX_ERRORS else None,
            )
    layers = {item.name.name: item for item in items if isinstance(item, ast.Layers)}
    closed = replace(file, extends=None, items=items, comments=())
    return Linked(closed, layers, {name: let.name.span for name, let in lets.items()}, parent)


# -- names and arithmetic --------------------------------------------------------------------------


class _Scope:
    """Replaces names by their values. A `let` is evaluated at its first use."""

    def __init__(self, lets: dict[str, ast.Let], found: Diagnostics):
        self.lets, self.found = lets, found
        self.used: set[str] = set()
        self.done: dict[str, ast.Value] = {}
        self.open: list[ast.Let] = []  # being evaluated, outermost first
        self.num_values = 0  # that names stood for so far

    def closed(self, node: N) -> N:
        """The same node with every value in it closed; other names stay, as words and paths do."""
        changes: dict[str, Any] = {}
        for one in fields(node):
            inner = getattr(node, one.name)
            if one.name in ast.VALUES and isinstance(inner, ast.Node):
                changes[one.name] = self.value(cast(ast.Value, inner))
            elif isinstance(inner, ast.Node):
                changes[one.name] = self.closed(inner)
            elif isinstance(inner, tuple) and inner and isinstance(inner[0], ast.Node):
                changes[one.name] = tuple(self.closed(each) for each in inner)
        return replace(node, **changes) if changes else node

    def value(self, node: ast.Value) -> ast.Value:
        """The same value with names replaced and arithmetic evaluated."""
        match node:
            case ast.Name(name=name):
                return self.value_of(node) if name in self.lets else node
            case ast.Call(arguments=arguments):
                closed = tuple(replace(a, value=self.value(a.value)) for a in arguments)
                return replace(node, arguments=closed)
            case ast.List(items=items):
                return replace(node, items=tuple(self.value(i) for i in items))
            case ast.RangeOf(start=start, stop=stop):
                return replace(node, start=self.value(start), stop=self.value(stop))
            case ast.Negative(value=inner):
                minus_one = ast.Literal(span=node.span, value=-1, text="-1")
                return self._combined(node, "*", minus_one, self.value(inner))
            case ast.Arithmetic(operator=operator, left=left, right=right):
                return self._combined(node, operator, self.value(left), self.value(right))
        return node

    def value_of(self, name: ast.Name) -> ast.Value:
        """The value of a `let`, at the place where it is used."""
        let = self.lets[name.name]
        self.used.add(name.name)
        if let in self.open:
            self._cycle(let, name)
            return _broken(name)
        if name.name not in self.done:
            self.done[name.name] = self._evaluated(let, name)
        value = self.done[name.name]
        if isinstance(value, ast.Literal):
            # Shown where it is used; `origin` points to its definition.
            return replace(value, span=name.span, origin=value.origin or value.span)
        number, depth = _size(value)
        self.num_values += number
        if self.num_values > MOST_VALUES or depth > MAX_NESTED:
            much = "nests too deeply" if depth > MAX_NESTED else "brings too many values"
            self.found.add(
                "E114", f"`{name.name}` {much}", name.span, help="use fewer lists of lists"
            )
            self.found.stop_if_wrong()
        return value

    def _evaluated(self, let: ast.Let, name: ast.Name) -> ast.Value:
        depth = len(self.open)
        self.open.append(let)
        try:
            if depth > MAX_CHAIN:
                raise RecursionError
            return self.value(let.value)
        except RecursionError:
            if depth:  # reported where the first of them is used
                raise
            self.found.add(
                "E114",
                f"`{name.name}` is defined through too many other names",
                name.span,
                help="replace some of them by their values",
            )
            self.found.stop()
        finally:
            del self.open[depth:]

    def _cycle(self, let: ast.Let, name: ast.Name) -> None:
        around = self.open[self.open.index(let) :]
        names = " -> ".join(f"`{x.name.name}`" for x in [*around, let])
        self.found.add(
            "E204",
            f"`{let.name.name}` is defined in terms of itself: {names}",
            name.span,
            others=tuple(Label(x.name.span, "through this") for x in around),
        )

    def _combined(
        self, node: ast.Value, operator: str, left: ast.Value, right: ast.Value
    ) -> ast.Literal:
        for side in (left, right):
            if isinstance(side, ast.Name):
                self.found.add(
                    "E209",
                    f"`{side.name}` is not defined",
                    side.span,
                    help=did_you_mean(side.name, self.lets),
                )
                return _broken(node)
            if not isinstance(side, ast.Literal):
                self.found.add(
                    "E207", "arithmetic takes only numbers, percentages and times", side.span
                )
                return _broken(node)
        assert isinstance(left, ast.Literal) and isinstance(right, ast.Literal)
        if BROKEN in (left.value, right.value):
            return _broken(node)
        try:
            value = combine(operator, left.value, right.value)
        except UnitError as error:
            help = _unit_help(operator, left.value, right.value)
            self.found.add("E207", str(error), node.span, help=help)
        except (ZeroDivisionError, OverflowError, ValueError):
            self.found.add("E228", "the result is not a usable number", node.span)
        else:
            return ast.Literal(span=node.span, value=value, text=written(value))
        return _broken(node)


def _broken(node: ast.Value) -> ast.Literal:
    return ast.Literal(span=node.span, value=BROKEN, text="0")


def _size(value: ast.Value) -> tuple[int, int]:
    """How many values a closed value holds, itself included, and how deep they nest."""
    parts: tuple[ast.Value, ...]
    match value:
        case ast.List(items=items):
            parts = items
        case ast.Call(arguments=arguments):
            parts = tuple(argument.value for argument in arguments)
        case ast.RangeOf(start=start, stop=stop):
            parts = (start, stop)
        case _:
            return 1, 0
    sizes = [_size(part) for part in parts]
    return 1 + sum(n for n, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)


def _unit_help(operator: str, left: object, right: object) -> str | None:
    """A percentage combined with a time probably means a share of the run; the difference of two
    times of different units, a range."""
    kinds = {type(left), type(right)}
    if operator == "-" and kinds == {Time}:
        return f"a range is written `{written(left)}..{written(right)}`"
    if kinds == {Percent, Time}:
        share = left if isinstance(left, Percent) else right
        return f"a share of the run is written `{written(share)} run`"
    return None


# -- parents ---------------------------------------------------------------------------------------


def _with_parents(
    file: ast.File, folder: Path | None, found: Diagnostics, read_parent: Callable[[Path], str]
) -> tuple[ast.File, ast.File | None]:
    """The file with everything it extends, and that alone; duplicates in each are reported."""
    files, at = [file], folder
    seen = {_key(folder, file.source.name)}
    while (extends := files[-1].extends) is not None:
        parent, at = _parent(extends, at, seen, len(files), read_parent)
        files.append(parent)
    for one in files:
        _duplicates(one, found)
    merged = files.pop()
    below: ast.File | None = None
    while files:
        below = merged
        merged = _merged(merged, files.pop())
    return merged, below


def _parent(
    extends: ast.Literal,
    folder: Path | None,
    seen: set[object],
    depth: int,
    read_parent: Callable[[Path], str],
) -> tuple[ast.File, Path]:
    wrong = Diagnostics()
    if is_shipped(extends.value):
        try:
            path = file_of(str(extends.value))
        except NoRecipe as missing:
            help = missing.help or "`dcil recipes` lists them"
            wrong.add("E201", str(missing), extends.span, help=help)
            wrong.stop()
    elif folder is None:
        wrong.add(
            "E201",
            "a recipe that is not in a file has no folder to find its parent in",
            extends.span,
            help="give `loads` the argument `folder`",
        )
        wrong.stop()
    else:
        path = Path(os.path.normpath(folder / str(extends.value)))
    key = _key(path.parent, path.name)
    if key in seen:
        wrong.add(
            "E202", f"`{extends.value}` extends itself, directly or through others", extends.span
        )
    elif depth > MAX_PARENTS:
        wrong.add("E203", f"more than {MAX_PARENTS} recipes extend each other", extends.span)
    wrong.stop_if_wrong()
    seen.add(key)
    try:
        text = read_parent(path)
    except Unreadable as error:
        wrong.add(
            "E201",
            f"cannot read the parent `{extends.value}`: {error}",
            extends.span,
            label=f"looked for {path}",
            help=did_you_mean(str(extends.value), recipes_in(path.parent)),
        )
        wrong.stop()
    try:
        return build_file(parse_text(Source(text, str(path), path.parent))), path.parent
    except RecipeError as error:
        raise RecipeError(_some(error.diagnostics, extends)) from None


def _some(errors: list[Diagnostic], extends: ast.Literal) -> list[Diagnostic]:
    """The errors that quote the first MOST_QUOTED lines, and how many more there are."""
    shown: list[Diagnostic] = []
    lines: set[int] = set()
    for error in errors:
        spans = [error.span, *(label.span for label in error.others)]
        lines |= {span.line for span in spans if span is not None}
        if len(lines) > MOST_QUOTED:
            break
        shown.append(error)
    more = len(errors) - len(shown)
    if more:
        least = "at least " if len(errors) >= MAX_ERRORS else ""
        message = (
            f"the parent `{extends.value}` is not a recipe: {least}{count(more, 'more error')}"
        )
        shown.append(Diagnostic("E201", message, extends.span))
    return shown


def _key(folder: Path | None, name: str) -> object:
    if folder is None:
        return name
    try:
        return (folder / Path(name).name).resolve()
    except (OSError, ValueError, RuntimeError):
        return (folder, name)


def _merged(parent: ast.File, child: ast.File) -> ast.File:
    """The child's items over the parent's."""
    mine = {slot: item for item in child.items if (slot := _slot(item))}
    items: list[ast.Item] = []
    for item in parent.items:
        slot = _slot(item)
        over = mine.pop(slot, None) if slot else None
        items.append(item if over is None else _over(item, over))
    added = [item for item in child.items if (slot := _slot(item)) is None or slot in mine]
    return replace(child, extends=None, items=(*items, *added))


def _slot(item: ast.Item) -> tuple[str, str] | None:
    """What an item replaces in its parent, or is merged with; None for rules, which are added."""
    match item:
        case ast.BlockNode(kind=kind):
            return kind, ""
        case ast.Let(name=name) | ast.Layers(name=name):
            return ast.kind_of(item), name.name
        case ast.Mix() | ast.Expect():
            return ast.kind_of(item), ""
    return None


def _over(item: ast.Item, over: ast.Item) -> ast.Item:
    if not (isinstance(item, ast.BlockNode) and isinstance(over, ast.BlockNode)):
        return over
    mine = {s.name.name: s for s in over.settings}
    kept = [mine.pop(s.name.name, s) for s in item.settings]
    named = item if over.name is None else over
    return replace(
        over,
        name=named.name,
        name_span=named.name_span,
        quoted=named.quoted,
        settings=(*kept, *mine.values()),
    )


def _duplicates(file: ast.File, found: Diagnostics) -> None:
    """E208 for duplicates within one file; the first stays."""
    first: dict[tuple[str, str], ast.Item] = {}
    for item in file.items:
        if slot := _slot(item):
            before = first.setdefault(slot, item)
            if before is not item:
                _twice(found, f"`{' '.join(slot).strip()}`", _head(item), _head(before))
        _same_names(getattr(item, "settings", ()), found)
        for inner in item.items if isinstance(item, ast.Mix) else ():
            _same_names(getattr(inner, "settings", ()), found)


def _same_names(settings: Iterable[ast.Setting], found: Diagnostics) -> None:
    first: dict[str, ast.Setting] = {}
    for setting in settings:
        before = first.setdefault(setting.name.name, setting)
        if before is not setting:
            _twice(found, f"`{setting.name.name}`", setting.name.span, before.name.span)


def _twice(found: Diagnostics, what: str, again: Span, before: Span) -> None:
    found.add("E208", f"{what} is given twice", again, others=(Label(before, "given here first"),))


def _head(item: ast.Item) -> Span:
    """The name of a definition, the keyword of a block."""
    if isinstance(item, ast.Let | ast.Layers):
        return item.name.span
    return replace(item.span, stop=item.span.start + len(ast.kind_of(item)))
