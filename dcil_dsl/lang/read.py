"""Settings and calls to words, and the errors in them.

In:   closed nodes (link.py), the classes of words/, the packages that the recipe `uses`.
Out:  validated words, with the span of each setting; E205..E214, E241..E243 in a Diagnostics.
Not:  nothing that concerns two statements at once (check.py).

pydantic checks types and limits; read_values.py turns its errors into ours. A package is imported
when the recipe writes one of its words, not before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, cast, get_args

from pydantic import ValidationError

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean, nearest
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.override import SET
from dcil_dsl.lang.read_values import Broken, Given, ValueReader, note, spelled
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import BLOCKS, PARTS
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.registry import (
    Declared,
    NoWord,
    kind_of_setting,
    own_words,
    packages_with,
    takes_list,
    words_at,
    words_of,
)
from dcil_dsl.words.targets import NM, Target, Uniform
from dcil_dsl.words.units import Percent, Quantity, Ratio, kind_of, written
from dcil_dsl.words.word import W, Word

# -- packages --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """`words`: those in addition to the language's own. `broken`: some could not be read,
    so that a word that is not known may be one of them."""

    words: dict[str, Declared] = field(default_factory=dict)
    broken: bool = False


def read_uses(block: ast.BlockNode | None, found: Diagnostics) -> Uses:
    """The words of the packages that the block names. Anything but a list of strings is reported
    with the block's settings."""
    settings = block.settings if block else ()
    given = next((s.value for s in settings if s.name.name == "uses"), None)
    if not isinstance(given, ast.List):
        return Uses(broken=given is not None)
    words: dict[str, Declared] = {}
    places: dict[str, Span] = {}
    broken = False
    for node in given.items:
        if not (isinstance(node, ast.Literal) and isinstance(node.value, str)):
            broken = True
            if isinstance(node, ast.Name):
                found.add(
                    "E206",
                    "a package is named by a string",
                    node.span,
                    help=f'write `"{node.name}"`',
                )
            continue
        try:
            declared = words_of(node.value)
        except NoWord as error:
            found.add("E241", error.message, node.span, help=error.help)
            broken = True
            continue
        for word, one in declared.items():
            other = words.get(word)
            if _is_taken(word):
                found.add(
                    "E242",
                    f"`{word}` of {one.package} {one.version} is a word of the language",
                    node.span,
                    help="the package has to give it another name",
                )
            elif other is not None and other.package == one.package:
                found.add(
                    "E208",
                    f"`{one.package}` is given twice",
                    node.span,
                    others=(Label(places[word], "given here first"),),
                )
                break
            elif other is not None:
                found.add(
                    "E242",
                    f"{one.package} and {other.package} both have a word `{word}`",
                    node.span,
                    others=(Label(places[word], "the other package"),),
                    help="a recipe uses one of the two",
                )
            else:
                words[word], places[word] = one, node.span
    return Uses(words, broken)


def _is_taken(word: str) -> bool:
    return word in (*METRICS, *PARTS) or any(word in table for table in own_words().values())


# -- words -----------------------------------------------------------------------------------------


@dataclass
class Settings(Generic[W]):
    """A validated block or call; `word` is None where something in it is wrong.

    `values`: the settings that could be read, valid or not.
    """

    word: W | None
    values: dict[str, Any]
    spans: dict[str, Span] = field(default_factory=dict)


class WordReader(ValueReader):
    """Reads words, of the language and of the packages that the recipe `uses`."""

    def __init__(
        self, found: Diagnostics, lets: dict[str, Span], epochs: float | None, uses: Uses = Uses()
    ):
        super().__init__(found, lets, epochs)
        self.uses = uses

    def quiet(self) -> WordReader:
        """One that reports nothing, for settings that are already reported."""
        return WordReader(Diagnostics(), self.lets, self.epochs, self.uses)

    # -- settings --------------------------------------------------------------------------

    def block(
        self, model: type[W], owner: str, settings: tuple[ast.Setting, ...], where: Span
    ) -> Settings[W]:
        """The settings of a block; `owner` is its name in messages."""
        given = [Given(s.name.name, s.name.span, s.value) for s in settings]
        return self.settings(model, owner, given, where)

    def settings(self, model: type[W], owner: str, given: list[Given], where: Span) -> Settings[W]:
        """Validate settings; everything wrong among them is noted."""
        values: dict[str, Any] = {}
        nodes: dict[str, Given] = {}
        good, word = True, None
        for one in given:
            if one.name in nodes:
                good = False  # reported already, by link.py or `_arguments`
                continue
            nodes[one.name] = one
            if one.name not in model.settings():
                near = self._unknown_setting(model, owner, one)
                if near is not None and all(other.name != near for other in given):
                    nodes[near] = one  # reported as misspelled, and not as missing too
                good = False
                continue
            try:
                values[one.name] = self._setting(model, one)
            except Broken:
                good = False
        spans = {name: one.value.span for name, one in nodes.items()}
        good &= spelled(model, owner, nodes, values, self)
        try:
            word = model(**values)
        except ValidationError as error:
            good &= not note(error, model, owner, nodes, values, where, self)
        return Settings(word if good else None, values, spans)

    def _setting(self, model: type[Word], one: Given) -> object:
        kind = kind_of_setting(model, one.name)
        if kind is None:
            return self.value(one.value)
        is_list = takes_list(model, one.name)
        if not isinstance(one.value, ast.List):
            if _is_none(one.value) and model.model_fields[one.name].default is None:
                return None  # what a child writes to be rid of its parent's
            if is_list:
                self.found.add(
                    "E206",
                    f"`{one.name}` is a list",
                    one.value.span,
                    help=f"write `[{_text(one.value)}]`",
                )
                raise Broken
            return self.word(one.value, kind)
        if not is_list:
            self.found.add("E206", f"`{one.name}` is one word, not a list", one.value.span)
            raise Broken
        read = [self._or_none(item, kind) for item in one.value.items]
        words = [word for word in read if word is not None]
        if len(words) < len(read):
            raise Broken
        self._in_order(words, one.value.items)
        return tuple(words)

    def _in_order(self, words: Sequence[Word], items: tuple[ast.Value, ...]) -> None:
        """Augmentations of pixels, then of normalised images, then of pairs of examples."""
        stages = [getattr(word, "stage", 0) for word in words]
        for at in range(1, len(stages)):
            if stages[at] < max(stages[:at]):
                later = items[stages.index(max(stages[:at]))]
                self.found.add(
                    "E229",
                    f"`{_text(items[at])}` stands after `{_text(later)}`",
                    items[at].span,
                    help=f"write it before `{_text(later)}`",
                )

    def _or_none(self, node: ast.Value, kind: type[W]) -> W | None:
        try:
            return self.word(node, kind)
        except Broken:
            return None

    def _unknown_setting(self, model: type[Word], owner: str, one: Given) -> str | None:
        """Note it; the setting that was probably meant."""
        near = nearest(one.name, model.settings())
        help = None if near is None else f"did you mean `{near}`?"
        if help is None:
            homes = [kind for kind, block in BLOCKS.items() if one.name in block.settings()]
            if homes:
                help = f"`{one.name}` is a setting of `{homes[0]}`"
            elif model.settings():
                help = f"it has {listed(f'`{name}`' for name in model.settings())}"
        self.found.add("E212", f"unknown setting `{one.name}` of `{owner}`", one.at, help=help)
        return near

    # -- calls -------------------------------------------------------------------------------

    def word(self, node: ast.Value, kind: type[W]) -> W:
        """The word of a kind; Broken if it is of another kind or wrong inside."""
        place = kind.place
        if isinstance(node, ast.Literal) and node.value is BROKEN:
            raise Broken
        if isinstance(node, ast.Name):
            return self._bare_word(node, kind)
        if not isinstance(node, ast.Call):
            examples = (
                f"`{name}`" if word.bare else f"`{name}(...)`"
                for name, word in words_at(place).items()
            )
            self.found.add(
                "E206",
                f"expected {place}, found {_kind(node)}",
                node.span,
                help=f"for example {listed(examples)}",
            )
            raise Broken
        name = node.name.name
        model = self._class(node.name, kind)
        if model.bare and not (node.arguments and model.settings()):
            self.found.add(
                "E206", f"`{name}` takes no parentheses here", node.span, help=f"write `{name}`"
            )
            raise Broken
        settings = self.settings(model, name, self._arguments(node, model), node.name.span)
        if settings.word is None:
            raise Broken
        return self._from(settings.word, node.name)

    def _arguments(self, call: ast.Call, model: type[Word]) -> list[Given]:
        fields: list[str] = list(model.settings())
        given: list[Given] = []
        name = call.name.name
        for index, argument in enumerate(call.arguments):
            if argument.name is None:
                if index < model.positional:
                    given.append(Given(fields[index], argument.span, argument.value))
                    continue
                settings = listed(f"`{f}=`" for f in fields) if fields else "none"
                self.found.add(
                    "E213",
                    f"this value of `{name}` needs its name",
                    argument.span,
                    help=_decimal(argument.span) or f"its settings are {settings}",
                )
                named = [a.name.name for a in call.arguments if a.name is not None]
                # Counts as the setting in this place, which is not missing then.
                if index < len(fields) and fields[index] not in named:
                    given.append(Given(fields[index], argument.span, _broken(argument.value)))
                continue
            key = argument.name.name
            before = next((g.at for g in given if g.name == key), None)
            if before is not None:
                self.found.add(
                    "E208",
                    f"`{key}` is given twice",
                    argument.name.span,
                    others=(Label(before, "given here first"),),
                )
                continue
            given.append(Given(key, argument.name.span, argument.value))
        return given

    def _bare_word(self, node: ast.Name, kind: type[W]) -> W:
        model = self._class(node, kind)
        need = "..." if any(f.is_required() for f in model.model_fields.values()) else ""
        if model.bare and not need:
            return self._from(model(), node)
        self.found.add(
            "E206",
            f"`{node.name}` needs its parentheses",
            node.span,
            help=f"write `{node.name}({need})`",
        )
        raise Broken

    # -- words of packages -----------------------------------------------------------------

    def _class(self, name: ast.Name, kind: type[W]) -> type[W]:
        """The class of a word, the language's own or a declared one; Broken for others."""
        place = kind.place
        own, declared = words_at(place).get(name.name), self.uses.words.get(name.name)
        if own is not None:
            return cast(type[W], own)
        if declared is None:
            self._unknown_word(name, place)
        try:
            model = declared.load()
        except NoWord as error:
            self.found.add("E243", error.message, name.span)
            raise Broken from None
        if model.place != place:
            self.found.add("E210", f"`{name.name}` is {model.place}, not {place}", name.span)
            raise Broken
        return cast(type[W], model)

    def elsewhere(self, word: str) -> str | None:
        """What to write where an installed package has a word that the recipe does not use."""
        packages = packages_with(word)
        return f'`uses = ["{packages[0]}"]` in the block `recipe` brings it' if packages else None

    def _from(self, word: W, name: ast.Name) -> W:
        """The word; one of a package with where it comes from."""
        declared = self.uses.words.get(name.name)
        if declared is None or name.name in words_at(word.place):
            return word
        for setting, value in word:
            if not _is_stored(value, type(word).model_fields[setting].annotation):
                self.found.add(
                    "E243",
                    f"`{setting}` of `{name.name}` is {kind_of(value)}, which no plan can hold",
                    name.span,
                )
                raise Broken
        word._origin = declared.origin
        return word

    def _unknown_word(self, name: ast.Name, place: str) -> NoReturn:
        word = name.name
        if self.uses.broken:
            raise Broken  # it may be one of the words that could not be read, already reported
        table = words_at(place)
        other = " and ".join(p for p, words in own_words().items() if word in words)
        help = did_you_mean(word, [*table, *self.lets, *self.uses.words])
        help = help or self.elsewhere(word)
        help = help or f"{place} is {listed(f'`{known}`' for known in table)}"
        message = f"`{word}` is {other}, not {place}" if other else f"`{word}` is not {place}"
        self.found.add("E210", message, name.span, help=help)
        raise Broken

    def target(self, node: ast.Value) -> Target:
        """How much a rule takes away; a bare percentage means of each layer."""
        if isinstance(node, ast.Literal):
            value = self.value(node)
            if isinstance(value, Percent):
                return Uniform(sparsity=self._below_all(value, node))
            if isinstance(value, Ratio):
                return self._pattern(value, node)
            help = "write `90%` or `global(90%)`"
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                help = f"did you mean `{written(Percent(value if value < 1 else value / 100))}`?"
            self.found.add(
                "E206", f"a target is a percentage, not {kind_of(value)}", node.span, help=help
            )
            raise Broken
        word = self.word(node, Target)
        if isinstance(word, NM):
            return self._pattern(Ratio(word.n, word.m), node)
        self._below_all(word.sparsity, node)
        return word

    def _pattern(self, ratio: Ratio, node: ast.Value) -> NM:
        if not 0 < ratio.keep < ratio.of:
            what = "keeps no weight" if ratio.keep < 1 else "prunes nothing"
            self.found.add(
                "E205",
                f"{written(ratio)} {what}",
                node.span,
                help="for example `2:4`: of every four, two stay",
            )
            raise Broken
        return NM(n=ratio.keep, m=ratio.of)

    def _below_all(self, sparsity: Percent, node: ast.Value) -> Percent:
        if sparsity.fraction >= 1:
            self.found.add(
                "E205",
                "100% leaves no weight to compute with",
                node.span,
                help="a target is below 100%",
            )
            raise Broken
        return sparsity


def keyword(item: ast.BlockNode | ast.Mix) -> Span:
    """The first word of a block, where a missing setting is reported."""
    if item.span.source.name == SET:
        return item.span
    return Span(item.span.source, item.span.start, item.span.start + len(ast.kind_of(item)))


def _is_stored(value: object, annotation: object) -> bool:
    """Whether a plan gives back the value of a setting: a quantity only as what the field says."""
    if isinstance(value, (tuple, list)):
        return all(_is_stored(item, annotation) for item in value)
    if isinstance(value, Quantity):
        return annotation is type(value) or any(
            _is_stored(value, one) for one in get_args(annotation)
        )
    return value is None or isinstance(value, (bool, int, float, str))


def _is_none(node: ast.Value) -> bool:
    return isinstance(node, ast.Literal) and node.value is None


def _decimal(span: Span) -> str | None:
    """What to write for `lr=0,02`, which is two values."""
    whole = re.search(r"(?<![\d.])\d+(?=,$)", span.source.text[: span.start])
    return f"did you mean `{whole[0]}.{span.text}`?" if whole and span.text.isdigit() else None


def _broken(node: ast.Value) -> ast.Literal:
    return ast.Literal(span=node.span, value=BROKEN, text="0")


def _text(node: ast.Value) -> str:
    text = node.span.text
    return text if len(text) <= 40 and "\n" not in text else "..."


def _kind(node: ast.Value) -> str:
    match node:
        case ast.Literal(value=value):
            return kind_of(value)
        case ast.List():
            return "a list"
        case ast.RangeOf():
            return "a range"
    return "a name"
