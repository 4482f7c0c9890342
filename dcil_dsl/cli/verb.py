"""The frame of every verb: its options, its errors, its exit status.

In:   a function of options.
Out:  a verb for typer, whose errors become text and a status; a recipe prepared for a model.
Not:  no verb (verbs.py) and no torch.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from dcil_dsl.cli.errors import DONE, note, status_of, tell
from dcil_dsl.cli.options import run_options, run_parameters
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training.options import RunOptions, flags

if TYPE_CHECKING:
    from dcil_dsl.jobs.prepare import Prepared


def verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """A verb whose errors become text and a status. It may return a status; None is 0.

    A parameter that is RunOptions becomes an option for each of its fields.
    """
    given = inspect.signature(function, eval_str=True).parameters.values()
    taken = next((one.name for one in given if one.annotation is RunOptions), None)

    @functools.wraps(function)
    def guarded(**values: Any) -> None:
        try:
            if taken is not None:
                fields = {name: values.pop(name) for name in flags()}
                values[taken] = run_options(fields)
            status = function(**values)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise  # a usage error, which typer reports with the usage line
            status = status_of(error, values.get("concise", False))
        raise typer.Exit(status or DONE)

    parameters: list[inspect.Parameter] = []
    for one in given:
        parameters += run_parameters() if one.name == taken else [one]
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = {one.name: one.annotation for one in parameters}
    return guarded


def prepare_for(
    recipe: str,
    model: str,
    overrides: Mapping[str, str],
    concise: bool,
    steps_per_epoch: int | None = None,
    **more: Any,
) -> Prepared:
    """The recipe prepared for the model (jobs/prepare.py), warnings and notes on stderr."""
    say_loading()
    from dcil_dsl.jobs.prepare import ASSUMED_SIZE, assumes_size, load_recipe, prepare
    from dcil_dsl.jobs.teachers import names_all

    warn = functools.partial(tell, concise=concise)
    read = load_recipe(recipe, overrides, warn)
    prepared = prepare(
        read,
        model,
        warn=warn,
        note=note,
        steps_per_epoch=steps_per_epoch,
        teachers={} if names_all(read) else None,
        **more,
    )
    if assumes_size(read) and any(x.dim() == 4 for x in prepared.example.tensors()):
        side = f"{ASSUMED_SIZE} x {ASSUMED_SIZE} pixels"
        note(f"the size of the images is unknown: {side} are assumed, on which arithmetic depends")
    return prepared


def say_loading() -> None:
    """On a terminal, say at once that torch is being imported, which takes seconds."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        note("loading torch")


def refuse(why: str, **options: object) -> None:
    """InputError for the options that were given, which mean nothing because of `why`."""
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if value is not None and value is not False and value != []
    ]
    if given:
        raise InputError(f"{', '.join(given)}: {why}")


def refuse_training_options(options: RunOptions) -> None:
    """InputError for the options that only training reads."""
    given = [flags()[name].name for name in options.given() if flags()[name].trains]
    if given:
        raise InputError(f"{', '.join(given)}: only for training; add --train DATA")
