"""The verbs of the core, a few lines each over the functions of jobs/.

In:   arguments.
Out:  text on stdout, diagnostics on stderr, an exit status.
Not:  no torch before a verb needs it: `dcil check` answers at once. commands.py lists the verbs.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.cli import options as o
from dcil_dsl.cli.checked import OUTPUTS, show_checked, write_reports
from dcil_dsl.cli.errors import DONE, WRONG, note, tell
from dcil_dsl.cli.results import report_run, show_claims
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import prepare_for, refuse, refuse_training_options, say_loading, verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.training.options import RunOptions
from dcil_dsl.words.metrics import metric_text

GAINS = "dcil_dsl.extras.targets.job"  # of an extra, imported at first use
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
    from dcil_dsl.diagnostics.optional import require_training

    require_training("--train")
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
        show(f"{show_plan(prepared.plan, page_of(sys.stdout))}\n{show_summary(dual)}")


@verb
def check(
    recipes: o.RecipeFiles,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    output: Annotated[
        str, typer.Option("--output", metavar="FORM", help=f"one of {', '.join(OUTPUTS)}")
    ] = "text",
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> int:
    """Check syntax and meaning; with --model, also every selector against the model's layers."""
    overrides = o.overrides_of(sets)
    if output not in OUTPUTS:
        raise InputError(f"--output {output}: the forms are {', '.join(OUTPUTS)}")
    if model is None:
        refuse("only with --model, which turns times into steps", steps_per_epoch=steps_per_epoch)
    else:
        say_loading()
    from dcil_dsl.jobs.check_files import check_files
    from dcil_dsl.jobs.recipe_files import recipe_files

    results = check_files(recipe_files(recipes), overrides, model, steps_per_epoch)
    if output == "text":
        return show_checked(results, model, concise)
    return write_reports(results, output)


@verb
def fmt(
    recipes: o.RecipeFiles,
    check: Annotated[
        bool, typer.Option("--check", help="change nothing; list the files that would change")
    ] = False,
    concise: o.Concise = False,
) -> int:
    """Rewrite recipe files in the canonical form. `-` reads standard input, writes to output."""
    from dcil_dsl.jobs.format_files import format_files
    from dcil_dsl.jobs.recipe_files import recipe_files

    done = format_files(recipe_files(recipes), write=not check)
    if done.piped is not None and not check:
        sys.stdout.write(done.piped)
    for file in done.changed:
        if check or file.path is not None:
            print(f"{file.name}: {'is not' if check else 'put'} in canonical form")
    return WRONG if check and done.changed else DONE


@verb
def init(
    model: o.Spec,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FILE", help="the file to write, or - (default: NAME.prune)"),
    ] = None,
) -> None:
    """Write a commented recipe for a model, and check it. An existing file is not overwritten."""
    say_loading()
    from dcil_dsl.jobs.first_recipe import name_of, write_recipe

    file = Path(f"{name_of(model)}.prune") if out is None else out
    is_piped = str(file) == "-"
    if not is_piped and file.exists():
        raise InputError(f"{file} exists already", help="name another file with --out")
    name = f"{name_of(model)}.prune" if is_piped else str(file)
    written = write_recipe(model, name, functools.partial(tell, concise=False), note)
    if is_piped:
        show(written.text)
        return
    try:
        with open(file, "x", encoding="utf-8") as target:
            target.write(written.text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from None
    found = written.prepared.plan
    pruned = sum(len(group.parameters) for group in found.groups)
    layers = count(len(found.layers), "layer")
    print(f"{file}: written, sound for {model}, prunes {pruned} of {layers}")
    print(f"next: dcil compile {file} --model {model} --train DATA")


@verb
def plan(
    recipe: o.RecipeFile,
    model: o.Spec,
    json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
    target: Annotated[
        Optional[str],
        typer.Option(
            "--for",
            metavar="TARGET",
            help="print instead which layers gain on cpu, openvino-int8, ethos-u, coreml, "
            "cuda-2:4 or dense",
        ),
    ] = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> None:
    """Print every layer with its rule, target, weights and FLOPs; the schedule; the cost."""
    prepared = prepare_for(recipe, model, o.overrides_of(sets), concise, steps_per_epoch)
    if target is not None:
        gains = import_module(GAINS)
        show((gains.gains_json if json else gains.show_gains)(prepared.plan, target))
        return
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
            metavar="CODE|WORD|LAYER",
            help="an error code (E301, W303), a word of a recipe (magnitude, refresh, prune), or a "
            "layer (layer3.0.conv2) with RECIPE and --model",
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
    """Explain an error code, a word of the language, or what a recipe does to one layer."""
    if recipe is None and model is None:
        from dcil_dsl.cli.explain_word import explain_name

        refuse(LAYER_NEEDS, set=sets, steps_per_epoch=steps_per_epoch)
        show(explain_name(what).rstrip("\n"))
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
    anyway: o.Anyway = False,
    concise: o.Concise = False,
) -> int:
    """Measure the metrics of a run, and check what the recipe expects.

    --train names the data again, where they come from code of your own.
    """
    say_loading()
    from dcil_dsl.jobs.inspect import evaluate_run

    found = evaluate_run(
        run,
        path=path,
        data=train,
        directory=data,
        device=device,
        workers=workers,
        model=model,
        anyway=anyway,
    )
    numbers = "  ".join(f"{n} {metric_text(n, value)}" for n, value in found.accuracy.items())
    show(f"{found.path} path after {count(found.step, 'step')}: {numbers}")
    if found.broken:
        of = f"{found.broken:,} of {count(found.num_examples, 'example')}"
        print(f"NOT FINITE: the output for {of} is not a number, and counts as wrong")
    show_claims(found.claims)
    for line in found.notes:
        note(line)
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
    anyway: o.Anyway = False,
    concise: o.Concise = False,
) -> None:
    say_loading()
    from dcil_dsl.jobs.export import export_run

    print(export_run(run, to, out, model, path, tell=print, anyway=anyway, note=note))


export.__doc__ = "\n\n".join(
    [
        "Write the network to deploy. RUN is a run folder, or an exported file to convert.",
        *(f"{exporter.name}: {exporter.help}." for exporter in EXPORTERS.values()),
    ]
)
