"""The verbs that look before anything is trained: plan, graph, explain, sensitivity.

In:   arguments.
Out:  text on stdout, as wide as the terminal; a profile in a file.
Not:  commands.py makes commands of them. Nothing of torch is imported before a verb needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import note, tell
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import overrides_of, prepare_for, refuse, shares_of, verb
from dcil_dsl.diagnostics import InputError

LAYER_NEEDS = "only for a layer: a recipe and --model are missing"


@verb
def plan(
    recipe: o.RecipeFile,
    model: o.Spec,
    json: Annotated[bool, typer.Option("--json", help="as data")] = False,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
):
    """Every layer with its rule, target, weights and arithmetic; the schedule; the cost."""
    prepared = prepare_for(recipe, model, overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.plan.facts import plan_and_facts_json
    from dcil_dsl.plan.show import show_plan
    from dcil_dsl.plan.wording import page_of

    if json:
        show(plan_and_facts_json(prepared.plan))
    else:
        show(show_plan(prepared.plan, page_of(sys.stdout)))


@verb
def graph(
    recipe: o.RecipeFile,
    model: o.Spec,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
):
    """The code of the dual graph, for each phase of the training and for evaluation."""
    prepared = prepare_for(recipe, model, overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.compiler import compile_plan
    from dcil_dsl.compiler.show import show_graph

    show(show_graph(compile_plan(prepared.plan, prepared.traced)))


@verb
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CODE|LAYER", help="E301, W303, ...; or layer3.0.conv2, with RECIPE and --model"
        ),
    ],
    recipe: Annotated[
        Optional[str], typer.Argument(metavar="[RECIPE]", help="the recipe, where it is a layer")
    ] = None,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
):
    """What an error code means, with an example; or the story of one layer under a recipe."""
    if recipe is None and model is None:
        from dcil_dsl.diagnostics.codes import explain

        refuse(LAYER_NEEDS, set=sets, steps_per_epoch=steps_per_epoch)
        show(explain(what).rstrip("\n"))
        return
    if recipe is None or model is None:
        missing = "a recipe" if recipe is None else "--model SPEC"
        raise InputError(f"to explain a layer takes a recipe and a model; {missing} is missing")
    prepared = prepare_for(recipe, model, overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.plan.explain import explain_layer
    from dcil_dsl.plan.wording import page_of

    page = page_of(sys.stdout)
    show(explain_layer(what, prepared.recipe, prepared.traced, prepared.plan, page))


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
        int, typer.Option("--batches", min=1, metavar="N", help="on so many batches")
    ] = 8,
    part: Annotated[
        str,
        typer.Option(
            "--part", metavar="PART", help="val, the held-out examples, or train, not augmented"
        ),
    ] = "val",
    levels: Annotated[
        Optional[str],
        typer.Option("--levels", metavar="PERCENTAGES", help="50%,70%,80%,90%,95%,99%"),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", metavar="PERCENTAGE", help="the sparsity of the rules")
    ] = "90%",
    json: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="write the profile to FILE")
    ] = None,
    sets: o.Sets = None,
    device: o.Device = "auto",
    workers: o.Workers = None,
    concise: o.Concise = False,
):
    """Prune each layer by itself at several sparsities, and measure what the network loses."""
    wanted = shares_of("--target", target)
    if len(wanted) > 1:
        raise InputError(f"--target {target}: one percentage")
    tried = {} if levels is None else {"levels": shares_of("--levels", levels)}
    if json is not None and not json.absolute().parent.is_dir():  # before minutes of measuring
        raise InputError(f"--json {json}: there is no folder {json.parent}")
    if json is not None and os.path.isdir(json):
        raise InputError(f"--json {json} is a folder", help="name a file in it")
    overrides = overrides_of(sets)
    if train is not None:
        from dcil_dsl.data.places import look

        look(train, data)  # before torch is loaded
    from rich.console import Console

    from dcil_dsl.extras.sensitivity.job import measure_sensitivity
    from dcil_dsl.extras.sensitivity.report import show_measured
    from dcil_dsl.plan.wording import page_of

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
            **tried,
            warn=lambda d: tell(d, concise),
            note=note,
            tell=lambda name: status.update(f"measuring {name}"),
        )
    text = show_measured(profile, wanted[0], json, page_of(sys.stdout))
    if json is None:
        show(text)
        return
    print(text, end="")  # first: what was measured for minutes is shown even where the file fails
    try:
        json.write_text(profile.to_json(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {json}: {error.strerror}") from None
