"""The recipes that come with the program, by name: `dcil:methods/gmp`.

In:   a name, after the prefix the path of a recipe without its suffix.
Out:  the file, in the installed wheel or in the repository; all names, with title and evidence.
Not:  no recipe is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import did_you_mean

PREFIX = "dcil:"
_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
_TITLE = re.compile(r'\btitle\s*=\s*"([^"]*)"')
_ROW = re.compile(r"^\| (\S+) \| [^|]* \| ([^|]*) \|$", re.MULTILINE)


class NoRecipe(Exception):
    """There is no such recipe. `help`: the nearest name."""

    def __init__(self, name: str, help: str | None):
        self.help = help
        super().__init__(f"no recipe of dcil is named `{name}`")


@dataclass(frozen=True)
class Shipped:
    """evidence: what was measured of it alone, by recipes/README.md; of_folder: of its folder. ""
    where that is not said."""

    name: str
    title: str
    evidence: str
    of_folder: str


def is_shipped(name: object) -> bool:
    return str(name).startswith(PREFIX)


def folder() -> Path:
    """Where the recipes lie."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "recipes", package.parent / "recipes"):
        if place.is_dir():
            return place
    raise FileNotFoundError("the recipes are neither in dcil_dsl/recipes nor in ../recipes")


def names() -> list[str]:
    """All names, without the prefix."""
    found = (path.relative_to(folder()).with_suffix("") for path in folder().rglob("*.prune"))
    return sorted(path.as_posix() for path in found)


def file_of(name: str) -> Path:
    """The file of `dcil:name`. NoRecipe if there is none; no name leads out of the folder."""
    own = name.removeprefix(PREFIX)
    path = folder() / f"{own}.prune"
    if _NAME.fullmatch(own) and path.is_file():
        return path
    raise NoRecipe(name, did_you_mean(name, [PREFIX + one for one in names()]))


def path_of(recipe: str | PathLike[str]) -> Path:
    """The file of a recipe that a person names, by its path or as `dcil:name`. InputError."""
    if not is_shipped(recipe):
        return Path(recipe)
    try:
        return file_of(str(recipe))
    except NoRecipe as missing:
        raise InputError(str(missing), missing.help or "`dcil recipes` lists them") from None


def shipped() -> list[Shipped]:
    """Every recipe with its title and the evidence."""
    rows = dict(_ROW.findall((folder() / "README.md").read_text(encoding="utf-8")))
    found = []
    for name in names():
        text = file_of(name).read_text(encoding="utf-8")
        title = _TITLE.search(text)
        within, slash, _ = name.partition("/")
        evidence, of_folder = rows.get(name, ""), rows.get(within, "") if slash else ""
        found.append(
            Shipped(PREFIX + name, title.group(1) if title else "", evidence.strip(), of_folder)
        )
    return found
