"""The verbs of the core, a few lines each over the functions of jobs/.

In:   arguments.
Out:  text on stdout, diagnostics on stderr, an exit status.
Not:  no torch before a verb needs it: `dcil check` answers at once. commands.py lists the verbs.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import DONE, WRONG, note, tell
from dcil_dsl.cli.results import report_run, show_claims
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import prepare_for, refuse, refuse_training_options, say_loading, verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.training.options import RunOptions
from dcil_dsl.words.metrics import metric_text

LAYER_NEEDS = "only for a layer; add a recipe and --model SPEC"


@verb
def compile_recipe(
    recipe: o.RecipeFile,
    model: o.Spec,
    train: o.Train = None,
    *,
    options: RunOptions,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> int:
    """Compile a recipe for a model; with --train: train, evaluate, export, prove."""
    if train is None:
        refuse_training_options(options)
        _compile(recipe, model, options, concise, steps_per_epoch)
        return DONE
    refuse("the data of --train give the length of an epoch", steps_per_epoch=steps_per_epoch)
    from dcil_dsl.data.datasets import require_data

    require_data(train, options.directory)  # before torch is loaded
    if not options.quiet:
        say_loading()
    from dcil_dsl.jobs.data import pick_device
    from dcil_dsl.jobs.train import train as train_job
    from dcil_dsl.training.machine import keep_freed_memory

    if pick_device(options.device).type == "cpu":
        keep_freed_memory()  # a program that calls dcil.train decides this for itself
    warn = functools.partial(tell, concise=concise)
    run = train_job(recipe, model, train, options, warn=warn, note=note)
    return report_run(run, options)


def _compile(
    recipe: str, model: str, options: RunOptions, concise: bool, steps_per_epoch: int | None
) -> None:
    prepared = prepare_for(
        recipe,
        model,
        options.overrides,
        concise,
        steps_per_epoch,
        weights=options.weights,
        precision=options.precision,
        seed=options.seed,
        compare=True,
    )
    from dcil_dsl.compiler import compile_plan
    from dcil_dsl.compiler.show import show_summary
    from dcil_dsl.plan.show import show_plan
    from dcil_dsl.plan.text import page_of

    dual = compile_plan(prepared.plan, prepared.traced)
    if not options.quiet:
        print(show_plan(prepared.plan, page_of(sys.stdout)))
        print(show_summary(dual), end="")


@verb
def check(
    recipe: o.RecipeFile,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> None:
    """Check syntax and meaning; with --model, also every selector against the model's layers."""
    overrides = o.overrides_of(sets)
    if model is not None:
        plan = prepare_for(recipe, model, overrides, concise, steps_per_epoch).plan
        pruned = sum(len(group.parameters) for group in plan.groups)
        print(f"{recipe}: sound for {model}, prunes {pruned} of {count(len(plan.layers), 'layer')}")
        return
    refuse("only with --model, which turns times into steps", steps_per_epoch=steps_per_epoch)
    from dcil_dsl.lang import load

    for diagnostic in load(recipe, overrides or None).warnings:
        tell(diagnostic, concise)
    print(f"{recipe}: sound")


@verb
def fmt(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help=".prune files")],
    check: Annotated[
        bool, typer.Option("--check", help="change nothing; list the files that would change")
    ] = False,
    concise: o.Concise = False,
) -> int:
    """Rewrite recipe files in the canonical form."""
    from dcil_dsl.jobs.format_files import format_files

    changed = format_files(recipes, write=not check)
    for path in changed:
        print(f"{path}: {'is not' if check else 'put'} in canonical form")
    return WRONG if check and changed else DONE


@verb
def plan(
    recipe: o.RecipeFile,
    model: o.Spec,
    json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> None:
    """Print every layer with its rule, target, weights and FLOPs; the schedule; the cost."""
    prepared = prepare_for(recipe, model, o.overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.plan.facts import plan_and_facts_json
    from dcil_dsl.plan.show import show_plan
    from dcil_dsl.plan.text import page_of

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
) -> None:
    """Print the code of the dual graph, for each phase of training and for evaluation."""
    prepared = prepare_for(recipe, model, o.overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.compiler import compile_plan
    from dcil_dsl.compiler.show import show_graph

    show(show_graph(compile_plan(prepared.plan, prepared.traced)))


@verb
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CODE|LAYER",
            help="an error code (E301, W303), or a layer (layer3.0.conv2) with RECIPE and --model",
        ),
    ],
    recipe: Annotated[
        Optional[str], typer.Argument(metavar="[RECIPE]", help="the recipe, for a layer")
    ] = None,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> None:
    """Explain an error code, with an example; or what a recipe does to one layer."""
    if recipe is None and model is None:
        from dcil_dsl.diagnostics.codes import explain

        refuse(LAYER_NEEDS, set=sets, steps_per_epoch=steps_per_epoch)
        show(explain(what).rstrip("\n"))
        return
    if recipe is None or model is None:
        missing = "a recipe" if recipe is None else "--model SPEC"
        raise InputError(f"to explain a layer takes a recipe and a model; {missing} is missing")
    prepared = prepare_for(recipe, model, o.overrides_of(sets), concise, steps_per_epoch)
    from dcil_dsl.plan.explain import explain_layer
    from dcil_dsl.plan.text import page_of

    page = page_of(sys.stdout)
    show(explain_layer(what, prepared.recipe, prepared.traced, prepared.plan, page))


@verb
def evaluate(
    run: o.RunDir,
    path: o.PathOfRun = None,
    train: o.Train = None,
    data: o.DataDir = None,
    device: o.Device = "auto",
    workers: o.Workers = None,
    model: o.MaybeSpec = None,
    concise: o.Concise = False,
) -> int:
    """Measure the metrics of a run, and check what the recipe expects.

    --train names the data again, where they come from code of your own.
    """
    say_loading()
    from dcil_dsl.jobs.inspect import evaluate_run

    found = evaluate_run(
        run, path=path, data=train, directory=data, device=device, workers=workers, model=model
    )
    numbers = "  ".join(f"{n} {metric_text(n, value)}" for n, value in found.accuracy.items())
    show(f"{found.path} path after {count(found.step, 'step')}: {numbers}")
    if found.broken:
        of = f"{found.broken:,} of {count(found.num_examples, 'example')}"
        print(f"NOT FINITE: the output for {of} is not a number, and counts as wrong")
    show_claims(found.claims)
    return DONE if found.holds else WRONG


@verb
def verify(
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT", help="a run folder, a checkpoint, a .safetensors or a .pth"
        ),
    ],
    recipe: Annotated[
        Optional[str],
        typer.Option(
            "--recipe", metavar="RECIPE", help="compare with this recipe (default: the file's own)"
        ),
    ] = None,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> int:
    """Prove the sparsity of a stored network, by counting zeros.

    In the table, allowed is how many weights of a layer may be nonzero, where it has a budget of
    its own; revived is how many are nonzero although their mask prunes them.
    """
    say_loading()
    from dcil_dsl.exporting.verify import show_verdict
    from dcil_dsl.jobs.inspect import verify_artefact
    from dcil_dsl.jobs.prepare import load_recipe

    if recipe is None:
        refuse("only with --recipe RECIPE", model=model, set=sets, steps_per_epoch=steps_per_epoch)
    warn = functools.partial(tell, concise=concise)
    asked = None if recipe is None else load_recipe(recipe, o.overrides_of(sets), warn)
    verdicts = verify_artefact(
        artefact, recipe=asked, model=model, warn=warn, note=note, steps_per_epoch=steps_per_epoch
    )
    for file, verdict in verdicts:
        print(f"{file}\n{show_verdict(verdict)}")
    return DONE if all(verdict.holds for _, verdict in verdicts) else WRONG


@verb
def export(
    run: o.RunDir,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"one of {', '.join(EXPORTERS)}")
    ],
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", metavar="PLACE", help="the file or folder to write (default: in RUN)"
        ),
    ] = None,
    path: o.PathOfRun = None,
    model: o.MaybeSpec = None,
    concise: o.Concise = False,
) -> None:
    say_loading()
    from dcil_dsl.jobs.export import export_run

    print(export_run(run, to, out, model, path, tell=print))


export.__doc__ = "\n\n".join(
    [
        "Write the network to deploy. RUN is a run folder, or an exported file to convert.",
        *(f"{exporter.name}: {exporter.help}." for exporter in EXPORTERS.values()),
    ]
)
