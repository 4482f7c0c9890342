"""What every verb of the command line is made with.

In:   a function of options; the texts of options.
Out:  a verb whose errors become text and a status; settings read; a recipe prepared.
Not:  no verb (commands.py, inspect.py) and no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import typer

from dcil_dsl.cli.errors import DONE, note, status_of, tell
from dcil_dsl.diagnostics import InputError


def verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """A verb whose errors become text and a status. It may return a status, None is 0."""

    @functools.wraps(function)
    def guarded(*args, **kwargs):
        try:
            status = function(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise  # a usage error, which typer tells with the usage line
            status = status_of(error, kwargs.get("concise", False))
        raise typer.Exit(status or DONE)

    return guarded


def overrides_of(sets: list[str] | None) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}. InputError where one has no `=` or a name comes twice."""
    overrides: dict[str, str] = {}
    for entry in sets or []:
        name, equals, value = entry.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise InputError(f"--set {entry}: not NAME=VALUE", help="--set target=95%")
        if name in overrides:
            raise InputError(f"--set gives `{name}` twice")
        overrides[name] = value
    return overrides


def shares_of(option: str, text: str) -> tuple[float, ...]:
    """ "50%,90%" -> (0.5, 0.9), rising. InputError where it is no list of percentages."""
    shares = []
    for part in text.split(","):
        number = part.strip().removesuffix("%")
        try:
            share = float(number) / 100
        except ValueError:
            share = 0.0
        if not part.strip().endswith("%") or not 0 < share < 1:
            raise InputError(f"{option} {text}: not a percentage between 0% and 100%: `{part}`")
        shares.append(share)
    return tuple(sorted(set(shares)))


def prepare_for(recipe, model, overrides, concise, steps_per_epoch=None, **more):
    """What jobs/prepare.py's `prepare` returns, warnings and notes told on stderr."""
    from dcil_dsl.jobs.prepare import load_recipe, prepare

    warn = functools.partial(tell, concise=concise)
    return prepare(
        load_recipe(recipe, overrides, warn),
        model,
        warn=warn,
        note=note,
        steps_per_epoch=steps_per_epoch,
        **more,
    )


def refuse(why: str = "only for a training: --train is missing", **options) -> None:
    """InputError where one of the options was given: without what `why` names it means nothing."""
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if value not in (None, False, [])
    ]
    if given:
        raise InputError(f"{', '.join(given)}: {why}")
