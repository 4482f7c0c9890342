"""What the program says about a word: its class's docstring and settings as plain data.

In:   the class of a word or of a block.
Out:  WordHelp, which `dcil explain`, the reference page and editors show.
Not:  no sentence that a docstring does not say.

A docstring begins with the usage of the word in backquotes. Its lines `name   meaning`, with two
spaces between, describe settings; those of a kind also describe the settings of its words.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic_core import PydanticUndefined

from dcil_dsl.words.blocks import BLOCKS, PathBlock, PrivateBlock
from dcil_dsl.words.registry import own_words
from dcil_dsl.words.units import Percent, Range, Ratio, Time, written
from dcil_dsl.words.word import Word

PLACES = {  # place of a word -> the heading of its kind, and where it is written
    "a target": ("Targets", "prune SELECTOR to WORD"),
    "a bound": ("Bounds", "bounds = [WORD]"),
    "a granularity": ("Granularities", "granularity = WORD"),
    "a score": ("Scores", "score = WORD"),
    "a schedule": ("Schedules", "schedule = WORD"),
    "a penalty": ("Penalties", "penalty = [WORD]"),
    "a parametrisation": ("Parametrisations", "param = WORD"),
    "a way to grow": ("Regrowth", "regrow = WORD"),
    "a view": ("Views", "path NAME = WORD"),
    "a teacher": ("Teachers", "path NAME = WORD"),
    "a loss": ("Losses", "loss WORD"),
    "a weighting of classes": ("Class weights", "classes=WORD, in kl"),
    "an optimizer": ("Optimizers", "optimizer = WORD"),
    "a learning rate over time": ("Learning rates", "lr = WORD"),
    "a group of weights": ("Groups of weights", "groups = [WORD]"),
    "a rule that ends the run": ("Early stopping", "stop = WORD"),
    "an integrator": ("Integrators", "integrator = WORD"),
    "a mirror step": ("Mirror steps", "mirror = WORD"),
    "an average of weights": ("Averages of weights", "average = WORD"),
    "a balance of losses": ("Balances of losses", "balance = WORD"),
    "an augmentation": ("Augmentations", "augment = [WORD]"),
}
# The statements whose braces hold settings, and the class of those settings.
SETTINGS = {
    **BLOCKS,
    "prune": BLOCKS["pruning"],
    "path": PathBlock,
    "private": PrivateBlock,
}


@dataclass(frozen=True)
class SettingHelp:
    """One setting. default None: required; meaning None: the docstring has no line for it."""

    name: str
    type: str
    default: str | None
    meaning: str | None
    choices: tuple[str, ...] = ()

    @property
    def place(self) -> str | None:
        """The kind of words that it takes, of a list of them too."""
        kind = self.type.removeprefix("a list: ")
        kind = "a weighting of classes" if kind == "class weights" else kind
        return kind if kind in PLACES else None

    @property
    def facts(self) -> str:
        """ "a time, default 16 steps"."""
        return f"{self.type}, {'required' if self.default is None else f'default {self.default}'}"


@dataclass(frozen=True)
class WordHelp:
    """A word or a block. text: paragraphs; those that are formulas are indented by four."""

    name: str
    place: str
    text: tuple[str, ...]
    settings: tuple[SettingHelp, ...]

    @property
    def usage(self) -> str:
        """How the word is written: `once(at=10ep)`."""
        found = re.match("`([^`]+)`", self.text[0] if self.text else "")
        return found[1] if found else self.name

    @property
    def summary(self) -> str:
        """One line: the first sentence after the usage."""
        first = re.sub("^`[^`]+`(?: or `[^`]+`)?[:,]? *", "", self.text[0] if self.text else "")
        return re.split(r"(?<=[a-z0-9)`])\. ", first)[0].rstrip(".")

    @property
    def written(self) -> str | None:
        """Where a recipe writes it: `schedule = WORD`."""
        return PLACES[self.place][1] if self.place in PLACES else None


@cache
def help_of_word(cls: type[Word], name: str | None = None) -> WordHelp:
    """What the class says. name: of a block; a word has its own."""
    fields = set(cls.model_fields)
    text, said = _read(inspect.cleandoc(cls.__doc__ or ""), fields)
    for parent in cls.__mro__[1:]:  # a setting of a kind is described where it is defined
        if parent.__module__.startswith("dcil_dsl."):
            said = _read(inspect.cleandoc(parent.__doc__ or ""), fields)[1] | said
    settings = tuple(
        SettingHelp(
            key,
            type_words(field),
            None if field.default is PydanticUndefined else value_words(field.default),
            said.get(key),
            _choices(field),
        )
        for key, field in cls.model_fields.items()
        if key in cls.settings()
    )
    return WordHelp(name or cls.spelling(), cls.place, text, settings)


def words_named(name: str) -> list[WordHelp]:
    """Every word of the language with this name: `gradient` is a score and a way to grow."""
    return [help_of_word(words[name]) for words in own_words().values() if name in words]


def blocks_with(setting: str) -> list[tuple[str, SettingHelp]]:
    """The statements that have this setting."""
    return [
        (block, one)
        for block, cls in SETTINGS.items()
        for one in help_of_word(cls, block).settings
        if one.name == setting
    ]


def _read(text: str, settings: set[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The paragraphs of a docstring, and what its lines `name   meaning` say about settings."""
    kept: list[str] = []
    said: dict[str, str] = {}
    last: str | None = None
    for line in re.sub(r"(?<!`)\bNone\b(?!`)", "`none`", text).split("\n"):
        found = re.match(r"(\w*)(\s*)(.*)", line)
        assert found is not None
        name, gap, meaning = found.groups()
        if name in settings and (len(gap) > 1 or last):
            said[name], last = meaning, name
        elif last and not name and meaning:
            said[last] += f" {meaning}"
        else:
            kept.append(line)
            last = None
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(kept)):
        lines = [line for line in paragraph.split("\n") if line]
        if lines and parts and all(line.startswith(" ") for line in lines):
            parts.append(textwrap.indent(textwrap.dedent("\n".join(lines)), "    "))
        elif lines:
            parts.append(" ".join(line.strip() for line in lines))
    return tuple(parts), said


def value_words(value: object) -> str:
    """A default as a recipe writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(value_words, value))}]"
    if isinstance(value, (Percent, Time, Range, Ratio)):
        return written(value)
    if isinstance(value, Word):
        return value.called if value.bare else f"{value.called}()"
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _choices(field: Any) -> tuple[str, ...]:
    found = re.search(r"Literal\[([^\]]+)\]", str(field.annotation))
    return tuple(choice.strip()[1:-1] for choice in found[1].split(",")) if found else ()


def type_words(field: Any) -> str:
    """The type of a setting in the words of the language."""
    text = str(getattr(field.annotation, "__name__", field.annotation))
    if "|" in str(field.annotation) or "[" in str(field.annotation):
        text = str(field.annotation)
    if choices := _choices(field):
        return " or ".join(f"`{choice}`" for choice in choices)
    marks = {mark for mark in field.metadata if isinstance(mark, str)}
    marks |= {mark for mark in ("path", "layers") if f"'{mark}'" in text}  # where it may be none
    if marks & {"path", "layers"}:
        return "a path" if "path" in marks else "a name of layers"
    for name, words in (
        (r"int\b.*\bPercent", "an integer or a percentage"),
        ("Percent", "a percentage"),
        ("Range", "a range of times"),
        ("Time", "a time"),
        ("bool", "`true` or `false`"),
        ("int", "an integer"),
        ("float", "a number"),
        ("str", "a string"),
        ("Granularity|Single", "a granularity"),
        ("Balanced", "class weights"),
    ):
        if re.search(rf"\b({name})\b", text):
            many = "tuple" in text or "list" in text
            return f"a list: {words}" if many else words
    for cls in _kinds():
        if re.search(rf"\b{cls.__name__}\b", text):
            return f"a list: {cls.place}" if "tuple" in text or "list" in text else cls.place
    return f"`{text}`".replace("|", "or")


def _kinds() -> list[type[Word]]:
    """Every class that words of the language derive from, and the words themselves."""
    words = [cls for table in own_words().values() for cls in table.values()]
    return [
        kind
        for kind in dict.fromkeys(parent for cls in words for parent in cls.__mro__)
        if issubclass(kind, Word) and kind.place
    ]
