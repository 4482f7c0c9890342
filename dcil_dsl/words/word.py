"""One word of the language with its settings: the base of every class in this folder.

In:   settings.
Out:  Word, which all words and blocks subclass; RunLength, what resolving needs.
Not:  no word of the language.

A word is one class: its settings are pydantic fields, its effect is its methods. Resolving a
recipe replaces times by steps; the plan stores the same class. No module of this folder imports
torch at its top, so that `dcil check` answers without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.words.units import Range, Time, written

if TYPE_CHECKING:
    from typing_extensions import Self

AT_LEAST_ONE = "at least one step"  # marks a setting of type Time that is a length, not a moment
W = TypeVar("W", bound="Word")
RESOLVED = "resolved"  # marks a field that resolving fills in; no recipe can set it


@dataclass(frozen=True)
class RunLength:
    """What resolving a word may look at.

    steps_per_epoch  optimizer steps in an epoch
    num_steps        optimizer steps in the whole run
    deploy           the path that is deployed
    class_counts     training examples of each class; None without data
    """

    steps_per_epoch: int
    num_steps: int
    deploy: str
    class_counts: tuple[int, ...] | None = None

    def steps(self, time: Time, least: int = 0) -> Time:
        """The same time in steps."""
        return Time(max(time.to_steps(self.steps_per_epoch, self.num_steps), least), "steps")


class WordOrigin(BaseModel):
    """The package that declares a word, with its version. The program's own words have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    word: str
    package: str
    version: str


class Word(BaseModel):
    """A word with settings. Unknown settings are errors; a word never changes.

    place       the kind of word, as messages name it: "a score"; a class that sets `place` and
                not `word` is a kind, its subclasses are words
    word        how a recipe writes it; default: the class name in snake case
    positional  how many settings may be given without their names, from the first on
    bare        written without parentheses when no setting is given
    path_settings  the settings that name a path, found when the class is made: torch.compile does
                not trace through pydantic's fields
    """

    # Built at first use: one recipe uses a third of the words, and `dcil check` stays quick.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        strict=True,
        defer_build=True,
        allow_inf_nan=False,
    )
    place: ClassVar[str] = ""
    word: ClassVar[str] = ""
    positional: ClassVar[int] = 0
    bare: ClassVar[bool] = False
    path_settings: ClassVar[tuple[str, ...]] = ()
    _origin: WordOrigin | None = PrivateAttr(None)
    _missing: tuple[dict[str, Any], InputError] | None = PrivateAttr(None)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        fields = cls.model_fields.items()
        cls.path_settings = tuple(name for name, info in fields if "path" in info.metadata)

    @classmethod
    def spelling(cls) -> str:
        """The word as a recipe writes it: `RandAugment` is `rand_augment`."""
        return cls.word or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """The settings that a recipe may give, in order."""
        return tuple(n for n, info in cls.model_fields.items() if RESOLVED not in info.metadata)

    @property
    def called(self) -> str:
        """The word as the recipe wrote it."""
        return self._origin.word if self._origin else self.spelling()

    @property
    def origin(self) -> WordOrigin | None:
        """The package that declares the word; None for the language's own."""
        return self._origin

    def require(self) -> None:
        """InputError if the word is of a package that is not installed as the plan needs it: such
        a word has its record, for comparisons, and no effect."""
        if self._missing is not None:
            raise self._missing[1]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that the settings name, in the order of the settings."""
        named = [getattr(self, name) for name in self.path_settings]
        return tuple(path for path in named if path is not None)

    def in_steps(self, run: RunLength) -> Self:
        """The word as the plan stores it: every time in steps, nested words too."""
        changed = {name: _in_steps(value, self, name, run) for name, value in self}
        return self.model_copy(update=changed)

    def describe(self, *but: str) -> str:
        """The word with its settings, `bounded(limit=0.1) of my_scores 1.0`.

        but  settings to leave out, with those that are None
        """
        shown = {name: value for name, value in self if value is not None and name not in but}
        given = ", ".join(f"{name}={_shown(value)}" for name, value in shown.items())
        whose = f" of {self._origin.package} {self._origin.version}" if self._origin else ""
        return self.called + (f"({given})" if given else "") + whose


def _in_steps(value: Any, word: Word, name: str, run: RunLength) -> Any:
    if isinstance(value, Time):
        is_length = AT_LEAST_ONE in type(word).model_fields[name].metadata
        return run.steps(value, least=1 if is_length else 0)
    if isinstance(value, Range):
        return Range(run.steps(value.start), run.steps(value.stop))
    if isinstance(value, Word):
        return value.in_steps(run)
    if isinstance(value, tuple):
        return tuple(_in_steps(item, word, name, run) for item in value)
    return value


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else written(value)


def every_word(value: object) -> Iterator[Word]:
    """All words in a value: a word, the words in its settings, in lists and parts of a plan."""
    if isinstance(value, Word):
        yield value
    if isinstance(value, BaseModel):
        for _, inner in value:
            yield from every_word(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from every_word(inner)


LARGEST = 3e38  # what float32 holds, in which weights are moved
Factor = Annotated[float, Field(gt=0, le=LARGEST)]
FactorOrZero = Annotated[float, Field(ge=0, le=LARGEST)]
LayersName = Annotated[str, "layers"]  # the name of a `layers` definition
PathName = Annotated[str, "path"]  # a path that `mix` declares, written without quotes
# The path whose gradient is taken, at the view that it sees. None: the deployed path.
ScoredPath = Annotated[str | None, "path"]
# The decay of a moving average over the steps. None: the last value, or the sum.
Average = Annotated[float | None, Field(gt=0, lt=1)]
Length = Annotated[Time, AT_LEAST_ONE]
