"""Everything that is known about one version of a recipe.

In:   a text, its path, a table of layers where there is one.
Out:  Analysis: the syntax tree, the linked file, the recipe, the diagnostics; which layers each
      rule matches.
Not:  nothing of the protocol. The stages are those of lang/__init__.py, in their order; between
      two of them the work ends if it was cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dcil_dsl.diagnostics import Diagnostic, Diagnostics, RecipeError, Source
from dcil_dsl.extras.lsp.positions import TextLines
from dcil_dsl.extras.lsp.table import KnownLayer, LayerTable
from dcil_dsl.extras.lsp.tokens import Lexeme, lexemes
from dcil_dsl.lang import ast
from dcil_dsl.lang.build import build_file
from dcil_dsl.lang.check import check
from dcil_dsl.lang.link import Linked, link, read_saved
from dcil_dsl.lang.parse import parse_text
from dcil_dsl.lang.recipe import PruneRule, Recipe
from dcil_dsl.lang.selectors import Selectors
from dcil_dsl.plan.select import Selection, claim_layers

Rule = ast.PruneNode | ast.KeepNode


class Cancelled(Exception):
    """The text has changed; nobody waits for this analysis."""


@dataclass
class Analysis:
    """One version of one text. A field is None where a stage before it found errors."""

    source: Source
    version: int | None = None
    file: ast.File | None = None
    linked: Linked | None = None
    recipe: Recipe | None = None
    table: LayerTable | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.source.text

    @cached_property
    def lines(self) -> TextLines:
        return TextLines(self.text)

    @cached_property
    def lexemes(self) -> list[Lexeme]:
        return lexemes(self.text)

    @cached_property
    def names(self) -> Names:
        """The names that the text and its parents define, also where it does not parse."""
        return Names.of(self)

    @cached_property
    def rules(self) -> list[Rule]:
        """The rules in order, parents' first."""
        items = self.linked.file.items if self.linked else self.file.items if self.file else ()
        return [item for item in items if isinstance(item, Rule)]

    @cached_property
    def matched(self) -> Matched | None:
        """None without a table."""
        return None if self.table is None else Matched(self)


@dataclass
class Names:
    """Names by kind. lets and layers hold those of parents too."""

    lets: dict[str, str] = field(default_factory=dict)  # with the text of the value
    layers: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(analysis: Analysis) -> Names:
        names = Names()
        for file in (analysis.linked.file if analysis.linked else None, analysis.file):
            for item in file.items if file else ():
                if isinstance(item, ast.Mix):
                    paths = [one for one in item.items if isinstance(one, ast.PathNode)]
                    names.paths = {one.name.name: one.view.span.text for one in paths}
        if analysis.linked is not None:
            for name, span in analysis.linked.lets.items():
                line = span.source.line(span.line)
                names.lets[name] = line.partition("=")[2].partition("#")[0].strip()
            for name, node in analysis.linked.layers.items():
                names.layers[name] = node.selector.span.text
        kinds = {"let": names.lets, "layers": names.layers, "path": names.paths}
        found = [one for one in analysis.lexemes if one.kind != "comment"]
        for before, one, after in zip(found, found[1:], [*found[2:], None], strict=False):
            if before.text in kinds and one.kind == "name" and after is not None:
                if after.text == "=" and one.text not in kinds[before.text]:
                    line = analysis.text[after.stop :].split("\n", 1)[0]
                    kinds[before.text][one.text] = line.partition("#")[0].strip()
        return names


class Matched:
    """Which layers selectors match, and which rule takes each of them."""

    def __init__(self, analysis: Analysis):
        assert analysis.table is not None
        self.table = analysis.table
        layers = cast(Any, self.table.layers)  # what selecting reads of a Layer
        self.selection = Selection(layers, self.table.name, Diagnostics())
        definitions = analysis.linked.layers if analysis.linked else {}
        self.closer = Selectors(definitions, Diagnostics())
        self.selection.prepare(rule.selector for rule in analysis.rules)
        self.rules = [(rule, self.mask(rule.selector)) for rule in analysis.rules]

    def mask(self, selector: ast.Selector) -> int:
        """The layers of a selector as a set; 0 where it cannot be evaluated."""
        try:
            return self.selection.mask(self.closer.closed(selector))
        except (RecipeError, AssertionError):
            return 0

    def layers(self, mask: int) -> tuple[KnownLayer, ...]:
        return cast("tuple[KnownLayer, ...]", self.selection.listed(mask))

    @cached_property
    def owner(self) -> list[int | None]:
        """For each layer the number of the rule that takes it: the last that matches."""
        found: list[int | None] = [None] * len(self.table.layers)
        left = (1 << len(found)) - 1
        for number in reversed(range(len(self.rules))):
            for layer in self.layers(self.rules[number][1] & left):
                found[self.selection.place[layer.path]] = number
            left &= ~self.rules[number][1]
        return found

    def taken(self, number: int) -> list[KnownLayer]:
        """The layers with weights that a rule takes."""
        pairs = zip(self.table.layers, self.owner, strict=True)
        return [layer for layer, owner in pairs if owner == number and layer.prunable]

    def rule_of(self, path: str) -> Rule | None:
        place = self.selection.place.get(path)
        number = None if place is None else self.owner[place]
        return None if number is None else self.rules[number][0]


def analyse(
    text: str,
    path: Path | None,
    name: str,
    find_table: Callable[[ast.File], LayerTable | None] = lambda file: None,
    cancelled: Callable[[], bool] = lambda: False,
    version: int | None = None,
    read_parent: Callable[[Path], str] = read_saved,
) -> Analysis:
    """All stages as far as they go. Raises Cancelled.

    find_table   the table for a linked file, None where there is none
    read_parent  the text of a recipe that is extended, which the editor may have open
    """

    def go_on() -> None:
        if cancelled():
            raise Cancelled

    folder = None if path is None else path.parent
    analysis = Analysis(Source(text, name, folder), version)
    found = Diagnostics()
    try:
        go_on()
        parsed = parse_text(analysis.source)
        go_on()
        analysis.file = build_file(parsed)
        go_on()
        analysis.linked = link(analysis.file, folder, {}, found, read_parent)
        go_on()
        analysis.table = find_table(analysis.linked.file)
        analysis.recipe = check(analysis.linked, found)
        go_on()
        if analysis.table is not None:
            _select(analysis.recipe, analysis.table, found, go_on)
    except RecipeError as error:
        analysis.diagnostics = [*error.diagnostics, *found.warnings]
        if analysis.file is None and (head := _head(text)) is not None:
            analysis.table = find_table(head)
    else:
        analysis.diagnostics = list(found.found)
    return analysis


# `model` and `data` with their settings, at the beginnings of lines.
_BLOCKS = re.compile(r"^(?:model|data)\b[^{}\n]*(?:\{[^{}]*\})?", re.MULTILINE)


def _head(text: str) -> ast.File | None:
    """What a text that does not parse says of its model and data: names are completed in it."""
    blocks = "\n".join(_BLOCKS.findall(text))
    try:
        return build_file(parse_text(Source(f"language 1\n{blocks}\n")))
    except RecipeError:
        return None


def _select(
    recipe: Recipe, table: LayerTable, found: Diagnostics, go_on: Callable[[], None]
) -> None:
    """Every selector against the layers, as resolving does it."""
    selection = Selection(cast(Any, table.layers), table.name, found)
    claim_layers(recipe.rules, selection, found)
    go_on()
    for private in recipe.privates:
        selection.select(private.selector)
    for rule in recipe.rules:
        for bound in rule.bounds if isinstance(rule, PruneRule) else ():
            selection.select(bound.selector)
    for word in (recipe.average, *recipe.groups):
        if word is not None and word.selector is not None:
            selection.select(word.selector)
    found.stop_if_wrong()
