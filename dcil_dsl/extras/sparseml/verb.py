"""The verb `dcil import`.

In:   a recipe of SparseML.
Out:  a `.prune` file; what it does not say, by line, on standard error; status 1 if that is much
      or little, 0 if it is nothing.
Not:  no translation (translate.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli.errors import DONE, WRONG, note
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.lang.statements import CLAUSES, STATEMENTS


@verb
def import_recipe(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="a recipe of SparseML: .yaml or .md")
    ],
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FILE", help="the file to write, or - (default: NAME.prune)"),
    ] = None,
) -> int:
    """Turn a recipe of SparseML into a .prune file; what cannot be expressed is listed by line."""
    from dcil_dsl.extras.sparseml.read import read_modifiers
    from dcil_dsl.extras.sparseml.translate import translate
    from dcil_dsl.lang.tokens import Unreadable, read_bytes

    try:
        text = read_bytes(file).decode("utf-8-sig")
    except (Unreadable, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    target = file.with_suffix(".prune") if out is None else out
    is_piped = str(target) == "-"
    if not is_piped and target.exists():
        raise InputError(f"{target} exists already", help="name another file with --out")
    done = translate(read_modifiers(text, str(file)), _name(file), file.name)
    for line, loss in done.losses:
        note(f"{file}:{line}: not in the recipe: {loss}")
    if is_piped:
        show(done.text)
    else:
        try:
            with open(target, "x", encoding="utf-8") as opened:
                opened.write(done.text)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}") from None
        print(f"{target}: written; next: dcil check {target} --model SPEC")
    return WRONG if done.losses else DONE


def _name(file: Path) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_")
    if not re.match("[a-z_]", name) or name in STATEMENTS or name in CLAUSES:
        return f"from_{name}".rstrip("_")
    return name
