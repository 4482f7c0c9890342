"""Where the class of a word is: in this folder, in an extra, or in an installed package.

In:   the files of this folder, the modules of extras in EXTRAS, the installed packages.
Out:  the class of a word, or NoWord with the reason.
Not:  no settings are read (lang/read.py).

Declarations are read without running anything. What is imported is a module of this program or
what an installed package declares under the entry point `dcil.words`, never a path from a recipe
or a plan.
"""

from __future__ import annotations

import inspect
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

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.words.word import Origin, Word

GROUP = "dcil.words"
OWN = (
    "targets",
    "granularity",
    "scores",
    "schedules",
    "views",
    "penalties",
    "parametrizations",
    "regrow",
    "losses",
    "optimizers",
    "weight_groups",
    "stops",
    "rates",
    "integrators",
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
    def origin(self) -> Origin:
        return Origin(word=self.word, package=self.package, version=self.version)

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
                f"{self} is not a word: {self.entry.value} is no subclass of a class of "
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
