"""The class of a word, found by its name, and a word as plain data.

In:   a name, the files of this folder, the modules of extras in WORDS, the installed packages; or
      the record of a word.
Out:  the class of a word, or NoWord with the reason; a word, its record, its token.
Not:  no recipe is read (lang/read.py).

Declarations are read without running anything. What is imported is a module of this program or
what an installed package declares under the entry point `dcil.words`, never a path from a recipe
or a plan. A record holds a word whose times are in steps:

    {"word": "linear", "settings": {"over": [0, 336], "initial": 0.0, "grid": 1}}

A word of a package also records the package and its version. Stored[Kind] is the type of a field
of the plan that holds a word; a token is the record as one string, which the code of a graph can
hold.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageNotFoundError,
    distribution,
)
from importlib.metadata import entry_points as all_entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import CoreSchema, core_schema

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.words.word import W, Word, WordOrigin

GROUP = "dcil.words"
OWN = (
    "targets",
    "granularity",
    "scores",
    "schedules",
    "views",
    "losses",
    "optimizers",
    "weight_groups",
    "rates",
    "step",
    "augment",
)
# The modules of extras that core reaches, by their names in dcil_dsl.extras.
WORDS = ("sensitivity.target", "late_phase.word", "loss_balance.word")
OTHERS = (
    "sharding.step",
    "sharding.checkpoint",
    "sharding.refusals",
    "sparse_compute.skip_pruned",
    "sparse_compute.step",
    "tracking.session",
)


class NoWord(Exception):
    """The word cannot be had. `message` is the fact, `help` what to do about it."""

    def __init__(self, message: str, help: str | None = None):
        self.message, self.help = message, help
        super().__init__(message)


# -- the language's own words ------------------------------------------------------------------


def extra(name: str) -> ModuleType:
    """A module of an extra, imported when it is first used."""
    assert name in WORDS + OTHERS, name
    return import_module(f"dcil_dsl.extras.{name}")


@cache
def own_words() -> dict[str, dict[str, type[Word]]]:
    """{place: {word: class}}, in the order in which the files define them; extras' words last."""
    found: dict[str, dict[str, type[Word]]] = {}
    modules = [f"dcil_dsl.words.{name}" for name in OWN]
    for module in [*map(import_module, modules), *map(extra, WORDS)]:
        for cls in vars(module).values():
            if _is_word(cls) and cls.__module__ == module.__name__:
                found.setdefault(cls.place, {})[cls.spelling()] = cls
    return found


def words_at(place: str) -> dict[str, type[Word]]:
    """The language's own words of one kind."""
    return own_words().get(place, {})


def _is_word(cls: object) -> bool:
    if not (isinstance(cls, type) and issubclass(cls, Word) and cls.place):
        return False
    is_kind = "place" in vars(cls) and not vars(cls).get("word")
    return not (is_kind or inspect.isabstract(cls))


# -- words of packages -------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A word that an installed package declares."""

    word: str
    entry: EntryPoint
    package: str
    version: str

    def __str__(self) -> str:
        return f"`{self.word}` of {self.package} {self.version}"

    @property
    def origin(self) -> WordOrigin:
        return WordOrigin(word=self.word, package=self.package, version=self.version)

    def load(self) -> type[Word]:
        """Import the class. NoWord if that fails, if it is not a word, or if it lacks the method
        of its kind."""
        try:
            cls = self.entry.load()
        except Exception as error:  # a package may fail in any way while it is imported
            raise NoWord(
                f"{self} cannot be imported: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Word) and cls.place):
            raise NoWord(
                f"{self} is not a word: {self.entry.value} is not a subclass of a class of "
                "dcil_dsl.words"
            )
        if cls.__abstractmethods__:
            missing = ", ".join(f"`{name}`" for name in sorted(cls.__abstractmethods__))
            raise NoWord(f"{self} does nothing yet: {self.entry.value} has no {missing}")
        return cls


def words_of(package: str) -> dict[str, Declared]:
    """The words of an installed package. NoWord if it is not installed or declares none."""
    try:
        installed = distribution(package)
    except (PackageNotFoundError, ValueError):
        raise NoWord(
            f"the package `{package}` is not installed", f"pip install {package}"
        ) from None
    words = {found.word: found for found in _declared(installed)}
    if not words:
        raise NoWord(f"the package `{package}` declares no words: no entry point of `{GROUP}`")
    return words


def packages_with(word: str) -> list[str]:
    """The installed packages that declare it."""
    declared = all_entry_points(group=GROUP, name=word)
    return sorted({entry.dist.metadata["Name"] for entry in declared if entry.dist})


def recorded(word: str, package: str, version: str) -> Declared:
    """The word that a plan was made with. InputError if that version is not installed."""
    install = f'pip install "{package}=={version}"'
    try:
        found = words_of(package).get(word)
    except NoWord as error:
        raise InputError(
            f"`{word}` is a word of {package} {version}: {error.message}", help=install
        ) from None
    if found is None:
        raise InputError(
            f"`{word}` is a word of {package} {version}, and the installed {package} has none of "
            "this name",
            help=install,
        )
    if found.version != version:
        raise InputError(
            f"`{word}` was planned with {package} {version}, and {found.version} is installed",
            help=f"{install}, or plan again from the recipe",
        )
    return found


def _declared(installed: Distribution) -> Iterable[Declared]:
    name, version = installed.metadata["Name"], installed.version
    for entry in installed.entry_points:
        if entry.group == GROUP:
            yield Declared(entry.name, entry, name, version)


class Record(BaseModel):
    """A word, its settings, and the package that declares it if it is not one of our own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    word: str
    package: str | None = None
    version: str | None = None
    settings: dict[str, JsonValue] = {}


def to_record(word: Word) -> dict[str, Any]:
    """Plain data. The times of the word must be in steps."""
    if word._missing is not None:
        return word._missing[0]
    record: dict[str, Any] = {"word": word.called}
    if word._origin is not None:
        record |= {"package": word._origin.package, "version": word._origin.version}
    settings = word.model_dump(mode="json")
    return record | ({"settings": settings} if settings else {})


def from_record(data: object, kind: type[W]) -> W:
    """The word of a record. InputError if there is no such word of this kind.

    A word of a package that is not installed in this version is read too, so that the plans of
    two versions can be compared and a file verified; `require` raises what is missing.
    """
    try:
        record = Record.model_validate(data)
    except ValidationError:
        raise InputError(f"a word of the plan is not {kind.place}: {str(data)[:100]}") from None
    origin = None
    if record.package is None:
        cls = words_at(kind.place).get(record.word)
        if cls is None:
            raise InputError(
                f"this version of dcil has no word `{record.word}` that is {kind.place}"
            )
    else:
        try:
            found = recorded(record.word, record.package, record.version or "")
            cls, origin = found.load(), found.origin
        except NoWord as error:
            return _missing(record, kind, InputError(error.message))
        except InputError as error:
            return _missing(record, kind, error)
    if not issubclass(cls, kind):
        raise InputError(f"`{record.word}` is {cls.place}, not {kind.place}")
    try:
        word = cls.model_validate_json(json.dumps(record.settings))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = InputError(
            f"`{record.word}` does not take the settings that it was planned with: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        )
        if origin is None:
            raise wrong from None
        return _missing(record, kind, wrong)
    word._origin = origin
    return word


def _missing(record: Record, kind: type[W], error: InputError) -> W:
    """A word of this kind that has no effect."""
    word: W = _without_effect(kind).model_construct(None, **record.settings)
    word._origin = WordOrigin(
        word=record.word, package=record.package or "", version=record.version or ""
    )
    word._missing = (record.model_dump(), error)
    return word


@cache
def _without_effect(kind: type[W]) -> type[W]:
    cls = type(f"Missing{kind.__name__}", (kind,), {"__module__": __name__})
    vars_of: Any = cls
    vars_of.__abstractmethods__ = frozenset()
    return cls


@cache
def kind_of_setting(cls: type[Word], name: str) -> type[Word] | None:
    """The kind of word that a setting takes, alone or in a list; None for plain values."""
    return _kind_in(cls.model_fields[name].annotation)


@cache
def takes_list(cls: type[Word], name: str) -> bool:
    """Whether a setting is a list of words."""
    return get_origin(cls.model_fields[name].annotation) is tuple


def _kind_in(annotation: object) -> type[Word] | None:
    if isinstance(annotation, type) and issubclass(annotation, Word):
        return annotation
    return next((kind for one in get_args(annotation) if (kind := _kind_in(one)) is not None), None)


class _Stored:
    """Reads and writes a field of the plan as the record of a word."""

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: type[Word], handler: object) -> CoreSchema:
        def read(value: object) -> Word:
            if isinstance(value, kind):
                return value
            try:
                return from_record({"word": value} if isinstance(value, str) else value, kind)
            except InputError as error:
                raise ValueError(error.message) from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(to_record)
        )


if TYPE_CHECKING:
    Stored = Annotated[W, ...]
else:

    class Stored:
        def __class_getitem__(cls, kind: type[Word]) -> object:
            return Annotated[kind, _Stored]


def token(word: Word) -> str:
    """The word with its settings as one string; the bare word if that is all of it."""
    record = to_record(word)
    return word.called if list(record) == ["word"] else json.dumps(record)


_loaded: dict[tuple[type[Word], str], Word] = {}


def load(kind: type[W], token: str) -> W:
    """The word of a token, the same object every time."""
    # A dictionary and no functools.cache: torch.compile traces through to what that wraps.
    word = _loaded.get((kind, token))
    if word is None:
        record = json.loads(token) if token.startswith("{") else {"word": token}
        word = _loaded[kind, token] = from_record(record, kind)
    return cast(W, word)
