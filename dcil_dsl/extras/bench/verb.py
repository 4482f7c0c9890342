"""The verb `dcil bench`.

In:   arguments.
Out:  a table on stdout; bench.json in a run folder, and where --json says.
Not:  no timing (measure.py), and no torch before the arguments are checked.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import note, tell
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import say_loading, verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sensitivity.verb import shares_of, write_text


@verb
def bench(
    place: Annotated[
        str,
        typer.Argument(
            metavar="RUN|EXPORT|RECIPE",
            help="a run folder, what `dcil export --to cpu|onnx|openvino|executorch` wrote, or a "
            "recipe whose layers are timed at several sparsities",
        ),
    ],
    json: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="write the times to FILE")
    ] = None,
    engines: Annotated[
        Optional[str],
        typer.Option(
            "--engines", metavar="NAMES", help="engines, with commas (default: all that fit)"
        ),
    ] = None,
    batch_sizes: Annotated[
        Optional[str],
        typer.Option(
            "--batch-sizes",
            metavar="NUMBERS",
            help="examples of one run (default: 1,16; of a recipe 1)",
        ),
    ] = None,
    threads: Annotated[
        Optional[str],
        typer.Option(
            "--threads", metavar="NUMBERS", help="threads (default: 1, and those of this machine)"
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="samples of each engine")
    ] = 15,
    path: Annotated[
        Optional[str],
        typer.Option("--path", metavar="PATH", help="the path (default: the deployed path)"),
    ] = None,
    levels: Annotated[
        Optional[str],
        typer.Option(
            "--levels",
            metavar="PERCENTAGES",
            help="sparsities of a recipe's layers (default: 50%,70%,80%,90%,95%)",
        ),
    ] = None,
    model: o.MaybeSpec = None,
    weights: o.Weights = None,
    train: o.Train = None,
    data: o.DataDir = None,
    sets: o.Sets = None,
    anyway: o.Anyway = False,
    concise: o.Concise = False,
) -> None:
    """Time the exported network in several engines, on this machine, now.

    int8 is calibrated on training examples of the run, which --train names again where they come
    from code of your own; else on noise. Of a recipe, the layers that it prunes are timed at
    several sparsities, for the targets `speedup` and `latency`: --json keeps the profile.
    """
    is_recipe = place.endswith(".prune") or place.startswith("dcil:")
    sizes = numbers_of("--batch-sizes", batch_sizes or ("1" if is_recipe else "1,16"))
    counts = numbers_of("--threads", threads)
    if json is not None and not json.absolute().parent.is_dir():
        raise InputError(f"--json {json}: there is no folder {json.parent}")
    if json is not None and json.is_dir():
        raise InputError(f"--json {json} is a folder", help="name a file in it")
    say_loading()
    from rich.console import Console

    if is_recipe:
        given = {"--engines": engines, "--path": path, "--train": train, "--data": data}
        wrong = next((name for name, value in given.items() if value is not None), None)
        if wrong is not None:
            raise InputError(f"{wrong} is of runs, and {place} is a recipe")
        if model is None:
            raise InputError("--model SPEC: which network is to be timed")
        if len(sizes) > 1 or len(counts) > 1:
            raise InputError("a recipe is timed with one batch size and one number of threads")
        from dcil_dsl.extras.latency.job import LEVELS, measure_speed
        from dcil_dsl.extras.latency.show import show_speed

        with Console(stderr=True).status("measuring") as status:
            profile = measure_speed(
                place,
                model,
                overrides=o.overrides_of(sets),
                weights=weights,
                levels=LEVELS if levels is None else shares_of("--levels", levels),
                batch=sizes[0],
                threads=counts[0] if counts else 1,
                rounds=rounds,
                warn=functools.partial(tell, concise=concise),
                note=note,
                tell=lambda text: status.update(text),
            )
        show(show_speed(profile).rstrip("\n"))
        if json is not None:
            write_text(json, profile.to_json())
        return
    alone = (("--levels", levels), ("--weights", weights), ("--set", sets))
    wrong = next((name for name, value in alone if value), None)
    if wrong is not None:
        raise InputError(f"{wrong} is of recipes, and {place} is none")
    from dcil_dsl.extras.bench.job import bench_run
    from dcil_dsl.extras.bench.measure import show_report

    names = None if engines is None else tuple(name.strip() for name in engines.split(","))
    with Console(stderr=True).status("timing engines"):
        report = bench_run(
            place,
            names,
            sizes,
            counts or tuple(dict.fromkeys((1, _num_cores()))),
            rounds,
            model=model,
            path=path,
            data=train,
            directory=data,
            tell=note,
            anyway=anyway,
        )
    show(show_report(report).rstrip("\n"))
    if json is not None:
        report.write(json)


def numbers_of(option: str, text: str | None) -> tuple[int, ...]:
    """ "1,16" -> (1, 16). InputError for anything but a list of whole numbers."""
    parts = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,4}\s*", part) for part in parts):
        raise InputError(f"{option} {text}: not whole numbers with commas between them")
    return tuple(int(part) for part in parts)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
