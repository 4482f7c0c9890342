"""One closed file out of a recipe, its parents, its `let`s and the command line.

In:   ast.File, the folder it lies in, the overrides of `--set`.
Out:  Linked: a File without `extends` and `let`, arithmetic worked out, `layers` still named;
      E114, E2xx and W2xx in a Diagnostics.
Not:  no word is looked up; check.py does. Merging is merge.py, overriding override.py.

What could not be worked out becomes a Literal of BROKEN, which check.py passes over in silence,
so that one mistake is told once and those beside it are told too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast, merge, override
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.words.units import Percent, Time, UnitError, combine, written

MOST_VALUES = 100_000  # in the lists and calls that names stand for: each may double another
MAX_NESTED = 60  # of lists and calls in each other; they are walked by recursion
MAX_CHAIN = 100  # of names that stand for names


@dataclass(frozen=True)
class Linked:
    """`layers`: every definition, not yet put into the selectors that name it.

    `lets`: where each `let` was defined, for suggestions; their values are in place already.
    """

    file: ast.File
    layers: dict[str, ast.Layers]
    lets: dict[str, Span]


def link(
    file: ast.File, folder: Path | None, overrides: dict[str, str], found: Diagnostics
) -> Linked:
    """Close a file; RecipeError at once where a parent is missing or cannot be read."""
    file = merge.with_parents(file, folder, found)
    file = override.apply(file, overrides, found)
    lets = {item.name.name: item for item in file.items if isinstance(item, ast.Let)}
    scope = _Scope(lets, found)
    items = tuple(scope.item(item) for item in file.items if not isinstance(item, ast.Let))
    used = sorted(scope.used)  # to look at one that is not counts as a use of it
    num_unused = 0
    for let in lets.values():
        if let.name.name not in scope.used and let.span.source.name != "--set":
            scope.value_of(let.name)  # what is wrong in it is wrong, used or not
            num_unused += 1
            found.add(
                "W201",
                f"`let {let.name.name}` is never used",
                let.name.span,
                help=did_you_mean(let.name.name, used) if num_unused <= MAX_ERRORS else None,
            )
    layers = {item.name.name: item for item in items if isinstance(item, ast.Layers)}
    closed = replace(file, extends=None, items=items, comments=())
    return Linked(closed, layers, {name: let.name.span for name, let in lets.items()})


class _Scope:
    """Puts values in the place of names. A `let` is worked out when first used."""

    def __init__(self, lets: dict[str, ast.Let], found: Diagnostics):
        self.lets, self.found = lets, found
        self.used: set[str] = set()
        self.done: dict[str, ast.Value] = {}
        self.open: list[ast.Let] = []  # being worked out, outermost first
        self.num_values = 0  # that names stood for so far

    # -- items ------------------------------------------------------------------------------

    def item(self, item: ast.Item) -> ast.Item:
        match item:
            case ast.Block():
                return replace(item, settings=self._settings(item.settings))
            case ast.Layers():
                return replace(item, selector=self._selector(item.selector))
            case ast.Prune():
                return replace(
                    item,
                    selector=self._selector(item.selector),
                    target=self.value(item.target),
                    settings=self._settings(item.settings),
                )
            case ast.Keep():
                return replace(item, selector=self._selector(item.selector))
            case ast.Mix():
                return replace(item, items=tuple(self._mix_item(x) for x in item.items))
            case ast.Expect():
                return replace(item, conditions=self._conditions(item.conditions))
        raise AssertionError(f"not an item: {item!r}")

    def _mix_item(self, item: ast.MixItem) -> ast.MixItem:
        match item:
            case ast.Path(view=view):
                # A view is a word, never a `let`: `path x = masked` reads the same everywhere.
                view = self.value(view) if isinstance(view, ast.Call) else view
                return replace(item, view=view, settings=self._settings(item.settings))
            case ast.Update():
                shares = tuple(replace(s, scalar=self._maybe(s.scalar)) for s in item.shares)
                return replace(
                    item, shares=shares, start=self._maybe(item.start), stop=self._maybe(item.stop)
                )
            case ast.Private():
                return replace(
                    item,
                    selector=self._selector(item.selector),
                    settings=self._settings(item.settings),
                )
            case ast.Loss():
                return replace(
                    item,
                    scalar=self._maybe(item.scalar),
                    term=self.value(item.term),
                    start=self._maybe(item.start),
                    stop=self._maybe(item.stop),
                )
        return item

    def _settings(self, settings: tuple[ast.Setting, ...]) -> tuple[ast.Setting, ...]:
        return tuple(replace(s, value=self.value(s.value)) for s in settings)

    def _conditions(self, conditions: tuple[ast.Condition, ...]) -> tuple[ast.Condition, ...]:
        return tuple(replace(c, value=self.value(c.value)) for c in conditions)

    def _selector(self, selector: ast.Selector) -> ast.Selector:
        match selector:
            case ast.Having(of=of, conditions=conditions):
                return replace(
                    selector, of=self._selector(of), conditions=self._conditions(conditions)
                )
            case ast.First(of=of) | ast.Last(of=of) | ast.Inside(of=of):
                return replace(selector, of=self._selector(of))
            case ast.Union_(parts=parts):
                return replace(selector, parts=tuple(self._selector(p) for p in parts))
            case ast.Except(of=of, but=but):
                return replace(selector, of=self._selector(of), but=self._selector(but))
        return selector

    # -- values -------------------------------------------------------------------------------

    def _maybe(self, node: ast.Value | None) -> ast.Value | None:
        return None if node is None else self.value(node)

    def value(self, node: ast.Value) -> ast.Value:
        """The same value with names replaced and arithmetic worked out."""
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
                return self._combined(node, "*", self._minus_one(node), self.value(inner))
            case ast.Arithmetic(operator=operator, left=left, right=right):
                return self._combined(node, operator, self.value(left), self.value(right))
        return node

    def value_of(self, name: ast.Name) -> ast.Value:
        """What a `let` stands for, at the place where it is used."""
        let = self.lets[name.name]
        self.used.add(name.name)
        if let in self.open:
            self._cycle(let, name)
            return self._broken(name)
        if name.name not in self.done:
            self.done[name.name] = self._worked_out(let, name)
        value = self.done[name.name]
        if isinstance(value, ast.Literal):
            # Shown where it is used; `origin` leads to where it was written.
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

    def _worked_out(self, let: ast.Let, name: ast.Name) -> ast.Value:
        depth = len(self.open)
        self.open.append(let)
        try:
            if depth > MAX_CHAIN:
                raise RecursionError
            return self.value(let.value)
        except RecursionError:
            if depth:  # told where the first of them is used
                raise
            self.found.add(
                "E114",
                f"`{name.name}` leads through too many others",
                name.span,
                help="give some of them their values",
            )
            self.found.stop_if_wrong()
        finally:
            del self.open[depth:]

    def _cycle(self, let: ast.Let, name: ast.Name) -> None:
        around = self.open[self.open.index(let) :]
        names = " -> ".join(f"`{x.name.name}`" for x in [*around, let])
        self.found.add(
            "E204",
            f"`{let.name.name}` is defined by itself: {names}",
            name.span,
            others=tuple(Label(x.name.span, "through this") for x in around),
        )

    def _combined(self, node: ast.Value, operator: str, left, right) -> ast.Value:
        for side in (left, right):
            if isinstance(side, ast.Name):
                self.found.add(
                    "E209",
                    f"`{side.name}` is not defined",
                    side.span,
                    help=did_you_mean(side.name, self.lets),
                )
                return self._broken(node)
            if not isinstance(side, ast.Literal):
                self.found.add(
                    "E207", "only numbers, percentages and times can be calculated with", side.span
                )
                return self._broken(node)
        if BROKEN in (left.value, right.value):
            return self._broken(node)
        try:
            value = combine(operator, left.value, right.value)
        except UnitError as error:
            help = _unit_help(operator, left.value, right.value)
            self.found.add("E207", str(error), node.span, help=help)
        except (ZeroDivisionError, OverflowError, ValueError):
            self.found.add("E228", "the result is not a number that can be used", node.span)
        else:
            return ast.Literal(span=node.span, value=value, text=written(value))
        return self._broken(node)

    def _minus_one(self, node: ast.Value) -> ast.Literal:
        return ast.Literal(span=node.span, value=-1, text="-1")

    def _broken(self, node: ast.Value) -> ast.Literal:
        return ast.Literal(span=node.span, value=BROKEN, text="0")


def _size(value: ast.Value) -> tuple[int, int]:
    """How many values a closed value holds, itself included, and how deep they nest."""
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
    """A percent beside a time was most likely meant as a share of the run, a time less another
    unit's as a range."""
    kinds = {type(left), type(right)}
    if operator == "-" and kinds == {Time}:
        return f"a range is written `{written(left)}..{written(right)}`"
    if kinds == {Percent, Time}:
        share = left if isinstance(left, Percent) else right
        return f"a share of the run is written `{written(share)} run`"
    return None
