"""The command line: one function a verb, each a few lines over the functions that do the work.

In:   arguments.
Out:  text on stdout, diagnostics on stderr, an exit status (errors.py).
Not:  nothing of torch is imported before a verb needs it: `dcil check` answers at once.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl import __version__
from dcil_dsl.cli import inspect
from dcil_dsl.cli import options as o
from dcil_dsl.cli.errors import DONE, STOPPED, WRONG, note, run_program, tell
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import overrides_of, prepare_for, refuse, verb
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.words.metrics import metric_text

SETTINGS = dict(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
EXPORT_HELP = "\n\n".join(
    [
        "The deployable network. RUN is a run folder, or an exported file to convert.",
        *(f"{exporter.name}: {exporter.help}." for exporter in EXPORTERS.values()),
    ]
)
app = typer.Typer(
    name="dcil",
    no_args_is_help=True,
    **SETTINGS,
    help="Prune neural networks as a recipe says: check it, compile it, train, prove, export.",
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"dcil {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="say it, and end"),
    ] = False,
):
    """What stands before a verb."""


@app.command("compile", short_help="The main job: compile, train, prove, export.")
@verb
def compile_recipe(
    recipe: o.RecipeFile,
    model: o.Spec,
    train: o.Train = None,
    data: o.DataDir = None,
    out: o.RunOut = None,
    resume: o.Resume = False,
    resume_anyway: o.ResumeAnyway = False,
    weights: o.Weights = None,
    sets: o.Sets = None,
    device: o.Device = "auto",
    precision: o.Precision = None,
    workers: o.Workers = None,
    on_bad_image: o.OnBadImage = "stop",
    on_nan: o.OnNan = "stop",
    compile: o.Compile = False,
    compile_mode: o.CompileMode = "default",
    shard: o.Shard = False,
    checkpoint_activations: o.CheckpointActivations = False,
    evaluate_every: o.EvaluateEvery = 1,
    seed: o.Seed = None,
    max_steps: o.MaxSteps = None,
    quiet: o.Quiet = False,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> int | None:
    """Compile a recipe for a model; with --train: train, evaluate, export, prove."""
    if precision not in (None, "fp32", "bf16", "fp16"):
        raise InputError(f"there is no precision `{precision}`", help="fp32, bf16 or fp16")
    if on_bad_image not in ("stop", "skip"):
        raise InputError(f"there is no --on-bad-image {on_bad_image}", help="stop or skip")
    if on_nan not in ("stop", "rewind"):
        raise InputError(f"there is no --on-nan {on_nan}", help="stop or rewind")
    overrides = overrides_of(sets)
    if train is None:
        refuse(
            data=data,
            out=out,
            resume=resume,
            resume_anyway=resume_anyway,
            compile=compile,
            max_steps=max_steps,
            workers=workers,
            shard=shard,
            checkpoint_activations=checkpoint_activations,
            compile_mode=None if compile_mode == "default" else compile_mode,
            evaluate_every=None if evaluate_every == 1 else evaluate_every,
            on_bad_image=None if on_bad_image == "stop" else on_bad_image,
            on_nan=None if on_nan == "stop" else on_nan,
        )
        prepared = prepare_for(
            recipe,
            model,
            overrides,
            concise,
            steps_per_epoch,
            weights=weights,
            precision=precision,
            seed=seed,
            compare=True,
        )
        from dcil_dsl.compiler import compile_plan
        from dcil_dsl.compiler.show import show_summary
        from dcil_dsl.plan.show import show_plan
        from dcil_dsl.plan.wording import page_of

        dual = compile_plan(prepared.plan, prepared.traced)
        if not quiet:
            print(show_plan(prepared.plan, page_of(sys.stdout)))
            print(show_summary(dual), end="")
        return DONE
    refuse("with --train, the data tell the length of an epoch", steps_per_epoch=steps_per_epoch)
    from dcil_dsl.data.places import look

    look(train, data)  # before torch is loaded: missing data are told at once
    from dcil_dsl.jobs.data import pick_device
    from dcil_dsl.jobs.train import train as train_job
    from dcil_dsl.training.machine import keep_freed_memory

    if pick_device(device).type == "cpu":
        keep_freed_memory()  # a program that calls dcil.train decides this for itself
    run = train_job(
        recipe,
        model,
        train,
        overrides=overrides,
        directory=data,
        out=out,
        resume=resume or resume_anyway,
        anyway=resume_anyway,
        on_bad_image=on_bad_image,
        on_nan=on_nan,
        weights=weights,
        device=device,
        precision=precision,
        workers=workers,
        compile=compile,
        compile_mode=compile_mode,
        shard=shard,
        seed=seed,
        max_steps=max_steps,
        quiet=quiet,
        checkpoint_activations=checkpoint_activations,
        evaluate_every=evaluate_every,
        warn=lambda d: tell(d, concise),
        note=note,
    )
    if not run.is_first:
        return STOPPED if run.interrupted else DONE
    if run.interrupted:
        again = shlex.join(_again(sys.argv, None if out is not None else run.path))
        where = f"step {run.result.step:,} of {run.plan.num_steps:,}"
        note(f"interrupted at {where}; continue with\n  {again}")
        return STOPPED
    if not quiet:
        _show_run(run)
    _tell_claims(run.claims)
    return DONE if run.holds else WRONG


@app.command(short_help="Is this recipe sound?")
@verb
def check(
    recipe: o.RecipeFile,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
):
    """Syntax and meaning; with --model, every selector against the model's layers."""
    if model is not None:
        plan = prepare_for(recipe, model, overrides_of(sets), concise, steps_per_epoch).plan
        pruned = sum(len(group.parameters) for group in plan.groups)
        print(f"{recipe}: sound for {model}, prunes {pruned} of {count(len(plan.layers), 'layer')}")
        return
    refuse("without --model no time becomes a step", steps_per_epoch=steps_per_epoch)
    from dcil_dsl.lang import load

    for diagnostic in load(recipe, overrides_of(sets) or None).warnings:
        tell(diagnostic, concise)
    print(f"{recipe}: sound")


@app.command()
@verb
def fmt(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help=".prune files")],
    check: Annotated[bool, typer.Option("--check", help="change nothing; list what would")] = False,
    concise: o.Concise = False,
) -> int:
    """Rewrite recipe files in the canonical form."""
    from dcil_dsl.jobs.format_files import format_files

    changed = format_files(recipes, write=not check)
    for path in changed:
        print(f"{path}: {'is not' if check else 'put'} in canonical form")
    return WRONG if check and changed else DONE


app.command(short_help="What happens to which layer, and when.")(inspect.plan)
app.command(short_help="What an error code means, or what a recipe does to one layer.")(
    inspect.explain
)
app.command(short_help="How much each layer minds being pruned, measured.")(inspect.sensitivity)
app.command(short_help="The compiled network, as code.")(inspect.graph)


@app.command("eval", short_help="The accuracy of a run.")
@verb
def evaluate(
    run: o.RunDir,
    path: Annotated[
        Optional[str],
        typer.Option("--path", metavar="PATH", help="sparse, dense, ...; else the deployed one"),
    ] = None,
    train: o.Train = None,
    data: o.DataDir = None,
    device: o.Device = "auto",
    workers: o.Workers = None,
    model: o.MaybeSpec = None,
    concise: o.Concise = False,
) -> int:
    """The metrics of a run, and whether what the recipe expects holds.

    --train names the data again, where they come from code of your own.
    """
    from dcil_dsl.jobs.inspect import evaluate_run

    found = evaluate_run(
        run, path=path, data=train, directory=data, device=device, workers=workers, model=model
    )
    numbers = "  ".join(f"{n} {metric_text(n, value)}" for n, value in found.accuracy.items())
    show(f"{found.path} path after {count(found.step, 'step')}: {numbers}")
    if found.broken:
        of = f"{found.broken:,} of {count(found.num_examples, 'example')}"
        print(f"NOT FINITE: the output for {of} is no number, and no class is right for it")
    _tell_claims(found.claims)
    return DONE if found.holds else WRONG


@app.command(short_help="Prove the sparsity of what is stored, by counting zeros.")
@verb
def verify(
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT", help="a run folder, a checkpoint, a .safetensors or a .pth"
        ),
    ],
    recipe: Annotated[
        Optional[str], typer.Option("--recipe", metavar="RECIPE", help="ask what this recipe asks")
    ] = None,
    model: o.MaybeSpec = None,
    sets: o.Sets = None,
    concise: o.Concise = False,
    steps_per_epoch: o.Steps = None,
) -> int:
    """Prove the sparsity of what is stored, by counting zeros.

    In the table, allowed is how many weights of a layer may be other than zero, where it has a
    budget of its own; revived is how many are, although their mask prunes them.
    """
    from dcil_dsl.exporting.verify import show_verdict
    from dcil_dsl.jobs.inspect import verify_artefact
    from dcil_dsl.jobs.prepare import load_recipe

    if recipe is None:
        refuse(
            "only to read a recipe: --recipe is missing",
            model=model,
            set=sets,
            steps_per_epoch=steps_per_epoch,
        )
    warn = functools.partial(tell, concise=concise)
    asked = None if recipe is None else load_recipe(recipe, overrides_of(sets), warn)
    verdicts = verify_artefact(
        artefact, recipe=asked, model=model, warn=warn, note=note, steps_per_epoch=steps_per_epoch
    )
    for file, verdict in verdicts:
        print(f"{file}\n{show_verdict(verdict)}")
    return DONE if all(verdict.holds for _, verdict in verdicts) else WRONG


@app.command(short_help="The network to deploy, as a file or folder.", help=EXPORT_HELP)
@verb
def export(
    run: o.RunDir,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"one of {', '.join(EXPORTERS)}")
    ],
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="PLACE", help="the file or folder; default: in RUN"),
    ] = None,
    path: Annotated[
        Optional[str], typer.Option("--path", metavar="PATH", help="default: the deployed path")
    ] = None,
    model: o.MaybeSpec = None,
    concise: o.Concise = False,
) -> None:
    from dcil_dsl.jobs.export import export_run

    print(export_run(run, to, out, model, path, tell=print))


def main() -> None:
    """The program `dcil`."""
    run_program(lambda: app(prog_name="dcil"))


def main_compile() -> None:
    """The program `dcil-compile`: `dcil compile` under its own name."""
    single = typer.Typer(**SETTINGS)
    single.command("compile")(compile_recipe)
    run_program(lambda: single(prog_name="dcil-compile"))


def _again(argv: list[str], folder: Path | None) -> list[str]:
    """The command that continues a run: what was typed, with --resume and the run's folder."""
    program = Path(argv[0]).name
    words = ["python", "-m", "dcil_dsl"] if program == "__main__.py" else [program]
    if (beside := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > 1:
        words = ["torchrun", "--nproc-per-node", str(beside), "-m", "dcil_dsl"]
    words += [word for word in argv[1:] if word not in ("--resume", "--resume-anyway")]
    return words + ([] if folder is None else ["--out", str(folder)]) + ["--resume"]


def _show_run(run) -> None:
    from rich.console import Console

    from dcil_dsl.training.progress import result_table
    from dcil_dsl.training.run import newest_of

    files = (run.folder.weights, run.folder.report, run.folder.metrics)
    files += (newest_of(run.folder.checkpoint) or run.folder.checkpoint,)
    Console().print(result_table(run.result, run.plan, files))


def _tell_claims(claims) -> None:
    words = {True: "holds", False: "DOES NOT HOLD", None: "not judged, the run is cut short"}
    for claim in claims:
        measured = metric_text(claim.metric, claim.measured)
        print(f"expect {claim.text}: measured {measured}, {words[claim.holds]}")
