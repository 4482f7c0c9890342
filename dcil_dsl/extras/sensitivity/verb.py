"""The verb `dcil sensitivity`.

In:   arguments.
Out:  a table on stdout, as wide as the terminal; a profile in a file.
Not:  no measuring (job.py), and no torch before the arguments are checked.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import note, tell
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import say_loading, verb
from dcil_dsl.diagnostics import InputError


@verb
def sensitivity(
    source: Annotated[
        Optional[str],
        typer.Argument(metavar="[RECIPE|RUN]", help="a recipe, or a run folder with its weights"),
    ] = None,
    model: o.MaybeSpec = None,
    train: Annotated[
        Optional[str],
        typer.Option("--train", metavar="DATA", help="the data to measure on"),
    ] = None,
    data: o.DataDir = None,
    weights: o.Weights = None,
    batches: Annotated[
        int, typer.Option("--batches", min=1, metavar="N", help="measure on N batches")
    ] = 8,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            metavar="PART",
            help="val, the held-out examples, or train, the training examples without augmentation",
        ),
    ] = "val",
    levels: Annotated[
        Optional[str],
        typer.Option(
            "--levels", metavar="PERCENTAGES", help="sparsities (default: 50%,70%,80%,90%,95%,99%)"
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--target", metavar="PERCENTAGE", help="sparsity of the printed rules"),
    ] = "90%",
    json: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="write the profile to FILE")
    ] = None,
    sets: o.Sets = None,
    device: o.Device = "auto",
    workers: o.Workers = None,
    anyway: o.Anyway = False,
    concise: o.Concise = False,
) -> None:
    """Prune each layer alone at several sparsities, and measure the loss and the accuracy."""
    wanted = shares_of("--target", target)
    if len(wanted) > 1:
        raise InputError(f"--target {target}: one percentage")
    tried: dict[str, Any] = {} if levels is None else {"levels": shares_of("--levels", levels)}
    _check_writable(json)
    overrides = o.overrides_of(sets)
    if train is not None:
        from dcil_dsl.data.datasets import require_data

        require_data(train, data)  # before torch is loaded
    say_loading()
    from rich.console import Console

    from dcil_dsl.extras.sensitivity.job import measure_sensitivity
    from dcil_dsl.extras.sensitivity.report import show_measured
    from dcil_dsl.plan.text import page_of

    with Console(stderr=True).status("measuring") as status:
        profile = measure_sensitivity(
            source,
            model,
            train,
            overrides=overrides,
            directory=data,
            weights=weights,
            device=device,
            workers=workers,
            num_batches=batches,
            part=part,
            anyway=anyway,
            **tried,
            warn=functools.partial(tell, concise=concise),
            note=note,
            tell=lambda name: status.update(f"measuring {name}"),
        )
    text = show_measured(profile, wanted[0], json, page_of(sys.stdout))
    if json is None:
        show(text)
        return
    print(text, end="")  # first: minutes of measuring are shown even if the file fails
    write_text(json, profile.to_json())


def _check_writable(json: Path | None) -> None:
    """InputError before minutes of measuring."""
    if json is None:
        return
    if not json.absolute().parent.is_dir():
        raise InputError(f"--json {json}: there is no folder {json.parent}")
    if os.path.isdir(json):
        raise InputError(f"--json {json} is a folder", help="name a file in it")


def write_text(file: Path, text: str) -> None:
    """Write what was measured. InputError where that fails."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from None


def shares_of(option: str, text: str) -> tuple[float, ...]:
    """ "50%,90%" -> (0.5, 0.9), rising. InputError for anything but a list of percentages."""
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
