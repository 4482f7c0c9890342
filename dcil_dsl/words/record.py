"""A word as plain data, and the same word found again.

In:   a word whose times are in steps, or its record.
Out:  its record or token, or the word.
Not:  no place of a class (registry.py).

    {"word": "linear", "settings": {"over": [0, 336], "initial": 0.0, "grid": 1}}

A word of a package also records the package and its version. Stored[Kind] is the type of a field
of the plan that holds a word; a token is the record as one string, which the code of a graph can
hold.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import CoreSchema, core_schema

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.words.registry import NoWord, recorded, words_at
from dcil_dsl.words.word import Origin, W, Word


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
    word._origin = Origin(
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
    return word  # type: ignore[return-value]
