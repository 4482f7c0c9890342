"""The machine's side of a run, beside its recipe: where its data and its first weights lie.

In:   a run folder, and what the command line said.
Out:  command.json, written once, read when the run is continued or looked at again.
Not:  nothing of the recipe, which is plan.json's.
"""

from __future__ import annotations

import json
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.options import RunOptions
from dcil_dsl.training.run import RunFolder, read_text

COMMAND = "command.json"


def command_text(plan: Plan, options: RunOptions) -> str:
    """The model, the data, and the options whose Flag says `recorded`."""
    command = {"model": plan.model.name, "data": plan.data.name, **options.recorded()}
    return json.dumps(command, indent=2) + "\n"


def read_command(folder: RunFolder) -> dict[str, str | None]:
    """The machine's side of a run; without its file, what the plan knows."""
    file = folder.path / COMMAND
    known = {"data": folder.read_plan().data.name, "directory": None}
    if not file.exists():
        return known
    try:
        told = known | dict(json.loads(read_text(file)))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    for name, value in told.items():
        if not isinstance(value, str | None):
            raise InputError(f"{file} cannot be read: `{name}` is no text")
    return told


def full_path(weights: str) -> str:
    """A file's path from anywhere; a library's own name for weights as it is."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() else weights


def weights_to_resume(folder: RunFolder, given: str | None) -> str | None:
    """What a continued run loads before its checkpoint: what it was started with.

    A file is needed only as long as there is no checkpoint. InputError where `given` is another.
    """
    first = read_command(folder).get("weights")
    if given is not None:
        if first not in (given, full_path(given)):
            raise InputError(
                f"{folder.path} was started from {first or 'fresh weights'}, not from {given}",
                help="leave --weights out to continue it",
            )
    is_file = first is not None and Path(first).is_absolute()
    return None if is_file and folder.has_checkpoint else first
