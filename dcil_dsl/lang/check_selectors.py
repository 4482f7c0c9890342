"""Selectors as far as they can be judged without a model.

In:   selectors with `let`s replaced, and the `layers` definitions.
Out:  the same selectors with every defined name replaced; E114, E206, E223, E226, W202.
Not:  whether anything matches; plan/select.py knows the layers.
"""

from __future__ import annotations

from dataclasses import replace

from dcil_dsl.diagnostics import Diagnostics, Label
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.patterns import Regex
from dcil_dsl.words.units import Ratio, Time

# For suggestions only: a recipe may name any class.
TYPES = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Linear",
    "MultiheadAttention",
    "Embedding",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LayerNorm",
    "GroupNorm",
    "InstanceNorm2d",
)


MOST_PARTS = 100_000  # of the definitions that names stand for: each may double another
MAX_CHAIN = 100  # of parts in each other, of names that stand for names; walked by recursion


class Selectors:
    """Closes selectors and remembers which definitions were used."""

    def __init__(self, layers: dict[str, ast.Layers], found: Diagnostics):
        self.layers, self.found = layers, found
        self.used: set[str] = set()
        self.num_parts, self.depth = 0, 0

    def closed(self, selector: ast.Selector, within: tuple[str, ...] = ()) -> ast.Selector:
        """The selector without names; `within`: the definitions being looked into."""
        depth, self.depth = self.depth, self.depth + 1
        self.num_parts += bool(within)
        try:
            if within and (self.num_parts > MOST_PARTS or self.depth > MAX_CHAIN):
                raise RecursionError
            return self._closed(selector, within)
        finally:
            self.depth = depth

    def _closed(self, selector: ast.Selector, within: tuple[str, ...]) -> ast.Selector:
        match selector:
            case ast.ByName(name=name):
                return self._named(selector, name, within)
            case ast.ByRegex(pattern=pattern):
                self._pattern(selector, pattern)
            case ast.ByGlob(pattern=pattern) if not pattern.strip():
                self.found.add("E226", "an empty name matches no layer", selector.span)
            case ast.Having(of=of, conditions=conditions):
                for condition in conditions:
                    self._condition(condition)
                return replace(selector, of=self.closed(of, within))
            case ast.First(of=of) | ast.Last(of=of) | ast.Inside(of=of):
                return replace(selector, of=self.closed(of, within))
            case ast.Union_(parts=parts):
                return replace(selector, parts=tuple(self.closed(p, within) for p in parts))
            case ast.Except(of=of, but=but):
                return replace(selector, of=self.closed(of, within), but=self.closed(but, within))
        return selector

    def warn_unused(self) -> None:
        """W202 for each definition that no rule uses; what is wrong in it is told all the same."""
        for name, definition in self.layers.items():
            if name not in self.used:
                self.found.add("W202", f"`layers {name}` is never used", definition.name.span)
                self.closed(definition.selector, (name,))

    def _named(self, selector: ast.ByName, name: str, within: tuple[str, ...]) -> ast.Selector:
        if name not in self.layers:
            near = did_you_mean(name, [*self.layers, *TYPES])
            self.found.add(
                "E223",
                f"no `layers {name}` is defined",
                selector.span,
                help=near or "types have a capital, names of layers stand in quotes",
            )
            return selector
        self.used.add(name)
        if name in within:
            around = within[within.index(name) :]
            self.found.add(
                "E223",
                f"`layers {name}` is defined by itself",
                selector.span,
                others=tuple(Label(self.layers[n].name.span, "through this") for n in around),
            )
            return selector
        try:
            return self.closed(self.layers[name].selector, (*within, name))
        except RecursionError:
            if len(within) > 1:  # told near the first of them; warn_unused begins with one
                raise
            self.found.add(
                "E114",
                f"`{name}` leads through too many others",
                selector.span,
                help="write some of their selectors out",
            )
            self.found.stop_if_wrong()

    def _pattern(self, selector: ast.ByRegex, pattern: str) -> None:
        try:
            Regex(pattern)
        except ValueError as error:
            self.found.add(
                "E226", "this regular expression is not valid", selector.span, label=str(error)
            )

    def _condition(self, condition: ast.Condition) -> None:
        value = condition.value
        if not isinstance(value, ast.Literal) or isinstance(value.value, (Time, Ratio)):
            help = None
            if isinstance(value, ast.Name):
                help = f'a text is written `"{value.name}"`'
            self.found.add(
                "E206",
                f"`{condition.name.name}` of a layer is compared with a number or a text",
                value.span,
                help=help,
            )
        elif value.value is not BROKEN and isinstance(value.value, (str, bool, type(None))):
            if condition.compare not in ("==", "!="):
                self.found.add(
                    "E206",
                    f"`{condition.compare}` compares numbers",
                    condition.span,
                    help="write `==` or `!=`",
                )
