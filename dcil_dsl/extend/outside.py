"""A word that brings its own effect, and what a plan keeps of it: enough to find the same again.

In:   a declared class (find.py), settings.
Out:  Extension, what all such classes are; Outside, plain data: the word, the package that gives
      it and its version, the settings; Outside.load(), the word with its effect.
Not:  what each kind of word computes (kinds.py).
"""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue, PrivateAttr, ValidationError

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.extend.find import Found, NoWord, recorded
from dcil_dsl.extend.word import Word


class Outside(BaseModel):
    """`package` and `version` None: a word of this program itself (ours.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    word: str
    package: str | None = None
    version: str | None = None
    settings: dict[str, JsonValue] = {}

    def __str__(self) -> str:
        return self.told()

    def told(self, *but: str) -> str:
        """"bounded(limit=0.1) of my_scores 1.0"; `but`: settings that are told elsewhere."""
        settings = {k: x for k, x in self.settings.items() if x is not None and k not in but}
        given = ", ".join(f"{k}={_shown(x)}" for k, x in settings.items())
        whose = f" of {self.package} {self.version}" if self.package else ""
        return self.word + (f"({given})" if given else "") + whose

    @property
    def token(self) -> str:
        """All of it in one text, as the code of a graph can hold it."""
        return self.model_dump_json()

    def load(self) -> Extension:
        """The word, the same object every time. InputError where the package is not there, or
        not in this version."""
        return load(self.token)


class Extension(Word):
    """A word with its effect. `place`: what kind of word it is, in messages."""

    place: ClassVar[str]
    _origin: Outside | None = PrivateAttr(None)

    @property
    def outside(self) -> Outside:
        """Where the word comes from, with its settings."""
        assert self._origin is not None, "words are made by lang/words.py or Outside.load"
        return self._origin.model_copy(update={"settings": self.model_dump(mode="json")})

    @property
    def called(self) -> str:
        return self.outside.word


def class_of(found: Found) -> type[Extension]:
    """The class of a declared word.

    NoWord where it cannot be imported, is something else, or lacks the method of its kind.
    """
    cls = found.load()
    if not (isinstance(cls, type) and issubclass(cls, Extension) and hasattr(cls, "place")):
        raise NoWord(
            f"{found} is no word: {found.entry.value} is no subclass of one of dcil_dsl.extend"
        )
    if cls.__abstractmethods__:
        missing = ", ".join(f"`{name}`" for name in sorted(cls.__abstractmethods__))
        raise NoWord(f"{found} does nothing yet: {found.entry.value} has no {missing}")
    return cls


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_token(text: str) -> bool:
    """Whether this is a word's token and no name of this program's own."""
    return text.startswith("{")


_loaded: dict[str, Extension] = {}


def load(token: str) -> Extension:
    """The word of a token, found once. InputError as of Outside."""
    # A dictionary and no functools.lru_cache: torch.compile traces through to what that wraps.
    word = _loaded.get(token)
    if word is None:
        word = _loaded[token] = _found(token)
    return word


def _found(token: str) -> Extension:
    outside = Outside.model_validate_json(token)
    found = recorded(outside.word, outside.package, outside.version)
    try:
        word = class_of(found).model_validate_json(json.dumps(outside.settings))
    except NoWord as error:
        raise InputError(error.message) from None
    except ValidationError as error:
        raise InputError(
            f"{found} does not take the settings that it was planned with: "
            f"{error.errors()[0]['msg']}"
        ) from None
    word._origin = outside
    return word
