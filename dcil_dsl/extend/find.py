"""Where a word's class is: in this folder's table, or declared by an installed package.

In:   names of words and of packages.
Out:  Found, whose load() imports the class; NoWord where there is none.
Not:  declarations are read without running anything. What is imported is what an installed
      package has declared under the entry point `dcil.words`, never a path out of a recipe or a
      plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution
from importlib.metadata import entry_points as all_entry_points

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.extend.ours import OURS

GROUP = "dcil.words"


class NoWord(Exception):
    """There is no such word to be had. `message` is a fact, `help` what to do about it."""

    def __init__(self, message: str, help: str | None = None):
        self.message, self.help = message, help
        super().__init__(message)


@dataclass(frozen=True)
class Found:
    """A declared word. package and version None: one of this program's own."""

    word: str
    entry: EntryPoint
    package: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"`{self.word}`" + (f" of {self.package} {self.version}" if self.package else "")

    def load(self) -> object:
        """Import what is declared. NoWord where that fails."""
        try:
            return self.entry.load()
        except Exception as error:  # a package may fail in any way while it is imported
            raise NoWord(
                f"{self} cannot be imported: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error


def own_word(word: str) -> Found | None:
    """A word of this program that brings its effect."""
    if word not in OURS:
        return None
    return Found(word, EntryPoint(word, OURS[word], GROUP))


def words_of(package: str) -> dict[str, Found]:
    """What an installed package declares. NoWord where it is not installed or declares nothing."""
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


def recorded(word: str, package: str | None, version: str | None) -> Found:
    """The word that a plan was made with. InputError where the very same is not here."""
    if package is None:
        found = own_word(word)
        if found is None:
            raise InputError(f"this version of the program has no word `{word}`")
        return found
    try:
        found = words_of(package).get(word)
    except NoWord as error:
        raise InputError(
            f"`{word}` is a word of {package} {version}: {error.message}",
            help=f'pip install "{package}=={version}"',
        ) from None
    if found is None:
        raise InputError(
            f"`{word}` is a word of {package} {version}, and the installed {package} has none of "
            "this name", help=f'pip install "{package}=={version}"',
        )
    if found.version != version:
        raise InputError(
            f"`{word}` was planned with {package} {version}, and {found.version} is installed",
            help=f'pip install "{package}=={version}", or plan again from the recipe',
        )
    return found


def _declared(installed: Distribution) -> Iterable[Found]:
    name, version = installed.metadata["Name"], installed.version
    for entry in installed.entry_points:
        if entry.group == GROUP:
            yield Found(entry.name, entry, name, version)
