"""The main job: a recipe, a model and data become a trained sparse network in a run folder.

In:   what `dcil-compile RECIPE --model SPEC --train DATA` was given.
Out:  the run folder, whose exported file was read back and proved; Run.
Not:  no step of training (training/), no printing but through `warn`, `note` and the display.
      Nothing is written before the data, the recipe and the model have proved usable.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.data import Dataset
from dcil_dsl.data.bad_images import BadImages
from dcil_dsl.data.contents import contents_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.artefact import Deployed, origin_of
from dcil_dsl.exporting.collapse import export
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.exporting.report import make_report
from dcil_dsl.exporting.verify import verify_tensors
from dcil_dsl.jobs.data import (
    Data,
    check_task,
    is_convolutional,
    open_data,
    open_loader,
    pick_device,
)
from dcil_dsl.jobs.expect import Claim, check_claims, judge_claims
from dcil_dsl.jobs.prepare import (
    Note,
    Warn,
    counted_classes,
    load_recipe,
    prepare,
    warn_in_python,
)
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.text import text_of
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_data
from dcil_dsl.plan.show import show_summary
from dcil_dsl.tasks import task_of
from dcil_dsl.training.alike import check_alike
from dcil_dsl.training.command import COMMAND, command_text, full_path, weights_to_resume
from dcil_dsl.training.distributed import (
    Ranks,
    joined_ranks,
    may_be_restarted,
    was_restarted,
)
from dcil_dsl.training.machine import peak_memory
from dcil_dsl.training.metrics import SparsityError
from dcil_dsl.training.optim import check_rate
from dcil_dsl.training.process import hold_run
from dcil_dsl.training.progress import Display, make_display
from dcil_dsl.training.run import RunFolder, create_run, open_run, resume_run
from dcil_dsl.training.trainer import Options, Result
from dcil_dsl.training.trainer import train as train_dual
from dcil_dsl.training.ways import check_plan_ways, check_ways
from dcil_dsl.words.registry import extra

FORMAT = "safetensors"  # of the file that a run leaves


@dataclass(frozen=True)
class Run:
    """What the job made. model is the deployed network.

    None where training was interrupted, and on all ranks but the first, which judges no claims.
    """

    folder: RunFolder
    plan: Plan
    result: Result
    claims: tuple[Claim, ...] = ()
    model: nn.Module | None = None
    is_first: bool = True  # of several processes, the one that tells of it

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def interrupted(self) -> bool:
        return self.result.interrupted

    @property
    def holds(self) -> bool:
        """Whether nothing that the recipe expects was missed."""
        return all(claim.holds is not False for claim in self.claims)


def train(
    recipe: str | Path | Recipe,
    model: str | nn.Module,
    data: Data,
    *,
    overrides: Mapping[str, str] = {},
    directory: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    weights: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    workers: int | None = None,
    compile: bool = False,
    seed: int | None = None,
    max_steps: int | None = None,
    quiet: bool = True,
    warn: Warn | None = None,
    note: Note | None = None,
    display: Display | None = None,
    anyway: bool = False,
    on_bad_image: Literal["stop", "skip"] = "stop",
    shard: bool = False,
    on_nan: Literal["stop", "rewind"] = "stop",
    checkpoint_activations: bool = False,
    evaluate_every: int = 1,
    compile_mode: Literal["default", "reduce-overhead"] = "default",
) -> Run:
    """Compile, train, evaluate, export and prove.

    recipe     a path, or a Recipe of dcil.load
    model      a SPEC ("torchvision:resnet18") or a module, which is not changed
    data       a name ("digits"), lying in `directory`; "my.py:make"; a Dataset; or a pair of a
               training and a held-out part
    out        the run folder; resume continues it
    workers    processes that read images; None: as many as pay
    max_steps  stop after so many steps of the run in all
    shard      of several processes each has a part of every weight and mask
    anyway     resume although recipe, model or data have changed
    on_bad_image  what becomes of one that cannot be read: the end of the run, or the next image in
                  its place, told and put down in the run's bad_images.txt
    on_nan     what becomes of a run whose loss is not finite: its end, or back to its last good
               checkpoint and on with half the rate, three times at most
    checkpoint_activations  most of them are computed again for the backward pass: less memory
    evaluate_every  the held-out data are gone through every so many epochs, and at the end
    compile_mode  "reduce-overhead": what `compile` makes is recorded as CUDA graphs and replayed

    Raises RecipeError, InputError, and SparsityError where the result is not as sparse as asked.
    """
    with joined_ranks() as ranks:
        if not ranks.is_first:
            warn, note, quiet, display = _silent, _silent, True, None
        options = Options(
            device=pick_device(device, ranks),
            compile=compile,
            max_steps=max_steps,
            anyway=anyway,
            ranks=ranks,
            shard=shard,
            on_nan=on_nan,
            compile_mode=compile_mode,
            checkpoint_activations=checkpoint_activations,
            evaluate_every=evaluate_every,
        )
        check_ways(options)
        return _train(
            recipe,
            model,
            data,
            overrides,
            directory,
            out,
            resume,
            weights,
            precision,
            workers,
            seed,
            quiet,
            warn or warn_in_python,
            note or _silent,
            display,
            on_bad_image,
            options,
        )


def _train(
    recipe,
    model,
    data,
    overrides,
    directory,
    out,
    resume,
    weights,
    precision,
    workers,
    seed,
    quiet,
    warn,
    note,
    display,
    on_bad_image,
    options: Options,
) -> Run:
    """`train`, among the ranks."""
    device, ranks, max_steps = options.device, options.ranks, options.max_steps
    resume = _may_resume(resume, out, ranks)
    if resume and out is None:
        raise InputError("--resume does not say which run", help="name its folder with --out DIR")
    if max_steps is not None and max_steps < 1:
        raise InputError(f"--max-steps {max_steps}: at least one step")
    recipe = load_recipe(recipe, overrides, warn)
    dataset = open_data(data, directory, recipe.data.channels)
    check_task(recipe, dataset)
    if resume:  # fails here, before a model is built
        weights = weights_to_resume(open_run(out), weights)
    elif weights is not None:
        weights = full_path(weights)
    _note_other_data(recipe, dataset, note)

    images = resolve_data(recipe.data)
    bad = BadImages(note) if on_bad_image == "skip" else None
    own = recipe.train.seed if seed is None else seed
    val_loader, train_loader = (
        open_loader(dataset, part, images, device, workers, ranks, seed=own, on_bad_image=bad)
        for part in ("val", "train")
    )
    example = val_loader.example()
    steps_per_epoch = math.ceil(train_loader.num_batches / recipe.train.accumulate)
    if images.batch_size < ranks.count:
        raise InputError(
            f"a batch of {count(images.batch_size, 'example')} has no part for each of "
            f"{ranks.count} processes",
            help="`batch_size` in the recipe's `data` is over all of them",
        )
    prepared = prepare(
        recipe,
        model,
        warn=warn,
        note=note,
        steps_per_epoch=steps_per_epoch,
        example=example,
        classes=len(dataset.classes) or None,
        task=task_of(dataset.task),
        data=dataset.name,
        weights=weights,
        precision=precision,
        seed=seed,
        compare=True,
        class_counts=counted_classes(recipe, dataset),
    )
    plan = prepared.plan
    check_claims(plan, task_of(dataset.task))
    check_rate(plan)
    if not resume:
        _refuse_broken_weights(prepared.traced.model)
    if options.shard:
        extra("sharding.refusals").check_shardable(plan, ranks)
    if not quiet:
        print(show_summary(plan), flush=True)
    dual = compile_plan(plan, prepared.traced)
    if not any(parameter.requires_grad for _, parameter in dual.trainable()):
        raise InputError(
            "no weight of the model learns: requires_grad is False for all of them",
            help="model.requires_grad_(True)",
        )
    check_plan_ways(plan, options)
    loaders = (train_loader, val_loader)
    if is_convolutional(plan):
        for loader in loaders:
            loader.layout = torch.channels_last

    in_words = text_of(prepared.traced)
    if ranks.count > 1:
        more = {
            "--out": None if out is None else os.path.abspath(out),
            "--weights": None if weights is None else Path(weights).name,
            "--on-bad-image": on_bad_image,
        }
        asked = replace(options, resume=resume)
        check_alike(plan, asked, in_words, contents_of(dataset, sizes=False), more)
    held = ExitStack()

    def the_folder() -> str:
        made_of = dict(model=in_words, data=contents_of(dataset))
        if resume:
            held.enter_context(hold_run(open_run(out)))  # before anything in it is replaced
            made_of["anyway"] = options.anyway
            return str(resume_run(out, plan, recipe.given, recipe.text, **made_of).path)
        beside = {COMMAND: command_text(plan, directory, weights, device)}
        try:
            folder = create_run(plan, recipe.given, recipe.text, out, beside=beside, **made_of)
        except InputError:
            ranks.refuse()
            raise
        held.enter_context(hold_run(folder))
        return str(folder.path)

    with held:
        folder = RunFolder(Path(ranks.from_first(the_folder)))
        if bad is not None:
            bad.keep_in(folder.bad_images)
        options = replace(options, channels_last=is_convolutional(plan), resume=resume)
        try:
            result = train_dual(dual, *loaders, folder, options, display or make_display(quiet))
        finally:
            for loader in loaders:
                loader.close()
        if result.interrupted or not ranks.is_first:  # the first one writes what is left to write
            return Run(folder, plan, result, is_first=ranks.is_first)
        deployed = export(dual).cpu()
        origin = origin_of(plan, result.step)
        EXPORTERS[FORMAT].write(Deployed(deployed, origin, plan), folder.weights)
        verdict = _prove(folder, {name: mask.cpu() for name, mask in dual.masks.items()})
        complete = result.step == plan.num_steps
        claims = judge_claims(plan, result.accuracies[plan.deploy], verdict.sparsity, complete)
        report = _report(plan, result, claims, deployed, device)
        folder.write_report(report | {"bad_images": folder.read_bad_images()})
        return Run(folder, plan, result, claims, deployed)


def _prove(folder: RunFolder, masks: Mapping[str, torch.Tensor]):
    """The file as it lies on the disk, not the module that it was written from."""
    artefact = EXPORTERS[FORMAT].read(folder.weights)
    verdict = verify_tensors(
        artefact.tensors, artefact.origin.promises, masks if artefact.origin.promises else None
    )
    if not verdict.holds:
        raise SparsityError(
            f"{folder.weights} is not what the recipe asks: " + "; ".join(verdict.faults)
        )
    return verdict


def _report(
    plan: Plan, result: Result, claims: tuple[Claim, ...], deployed: nn.Module, device: torch.device
) -> dict:
    versions = {
        "dcil_dsl": _version("dcil-dsl"),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "python": platform.python_version(),
        **{origin.package: origin.version for word in plan.words() if (origin := word.origin)},
    }
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "result": asdict(result),
        "expect": [asdict(claim) for claim in claims],
        "recipe": {
            "name": plan.recipe.name,
            "sha256": plan.recipe.sha256,
            "overrides": plan.recipe.overrides,
        },
        "model": plan.model.model_dump(),
        "data": plan.data.name,
        "seed": plan.train.seed,
        "device": {
            "type": device.type,
            "name": hardware,
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory(device),
        },
        "versions": versions,
        "training_cost": result.cost,
        "complete": result.step == plan.num_steps,
        "weights": make_report(plan, deployed.state_dict()).to_dict(),
    }


def _refuse_broken_weights(model: nn.Module) -> None:
    """InputError for NaN in what a run starts from, and for an infinite parameter.

    Constants of a model, which are buffers, may be infinite.
    """
    parameters = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    broken = parameters + [n for n, b in model.named_buffers() if b.isnan().any()]
    if broken:
        more = f" and {count(len(broken) - 5, 'tensor')} more" if len(broken) > 5 else ""
        raise InputError(
            "the model starts from numbers that are not finite, in "
            f"{', '.join(f'`{name}`' for name in broken[:5])}{more}",
            help="look at how the model is built, and at what it loads",
        )


def _may_resume(asked: bool, out: str | Path | None, ranks: Ranks) -> bool:
    """--resume, or a job that torchrun has started again and that had begun its run."""
    if not may_be_restarted():
        return asked
    if out is None:
        raise InputError(
            "with --max-restarts a new start must find the run", help="name its folder with --out"
        )
    begun = was_restarted() and RunFolder(Path(out)).plan.is_file() and not ranks.is_refused
    return asked or ranks.any(begun)


def _silent(told: object) -> None:
    """What all ranks would tell, the first one tells."""


def _note_other_data(recipe: Recipe, dataset: Dataset, note: Note) -> None:
    if recipe.data.name is not None and recipe.data.name.replace("_", "-") != dataset.name:
        note(f"the recipe was written for the data `{recipe.data.name}`; these are {dataset.name}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown" if package != "dcil-dsl" else "checkout"
