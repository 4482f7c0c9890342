"""Text to Recipe. Never imports torch; lark and pydantic only when the first text arrives.

In:   a recipe file, or its text, and the overrides of `--set`.
Out:  a checked Recipe; RecipeError with every diagnostic where the recipe is wrong.
Not:  a file that cannot be read is InputError: the command is wrong, not the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcil_dsl.lang.recipe import Recipe

__all__ = ["load", "loads"]


def load(path: str | PathLike[str], overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a file, or one that comes with the program: `dcil:methods/gmp`.

    overrides: {"target": "95%", "train.epochs": "5ep"}, values in the recipe's own notation.
    Raises RecipeError where the recipe is wrong, InputError where the file cannot be read.
    """
    from dcil_dsl.diagnostics import InputError
    from dcil_dsl.diagnostics.suggest import did_you_mean
    from dcil_dsl.lang.shipped import path_of
    from dcil_dsl.lang.tokens import Unreadable, read, recipes_in

    path = path_of(path)
    try:
        text = read(path)
    except Unreadable as error:
        others = [name for name in recipes_in(path.parent) if name != path.name]
        near = did_you_mean(path.name, others)
        if (path / "resolved.prune").is_file():
            near = f"that of this run is {path / 'resolved.prune'}"
        raise InputError(f"cannot read the recipe {path}: {error}", near) from None
    return loads(text, str(path), overrides, path.parent)


def loads(
    text: str,
    name: str = "<recipe>",
    overrides: Mapping[str, str] | None = None,
    folder: str | PathLike[str] | None = None,
) -> Recipe:
    """The recipe in a text. `name` is shown in messages; paths in it are relative to `folder`."""
    from dataclasses import replace

    from dcil_dsl.diagnostics import Diagnostics, Source
    from dcil_dsl.lang.build import build_file
    from dcil_dsl.lang.check import check
    from dcil_dsl.lang.fmt import print_file
    from dcil_dsl.lang.link import link
    from dcil_dsl.lang.parse import parse_text

    overrides = dict(overrides or {})
    folder = None if folder is None else Path(folder)
    file = build_file(parse_text(Source(text, name, folder)))
    found = Diagnostics()
    linked = link(file, folder, overrides, found)
    recipe = check(linked, found)
    return replace(
        recipe,
        overrides=tuple(overrides.items()),
        warnings=tuple(sorted(found.warnings, key=lambda w: w.span.start if w.span else -1)),
        given=text,
        text=print_file(linked.file),
        parent=""
        if linked.parent is None
        else print_file(link(linked.parent, None, {}, Diagnostics()).file),
    )
