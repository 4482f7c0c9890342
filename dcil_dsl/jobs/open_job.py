"""Everything that a training run needs, opened, built and checked.

In:   a recipe, a model, data and Options.
Out:  Job: the plan, the dual graph, the loaders. InputError or RecipeError for what cannot train.
Not:  nothing is written.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.reading import BadImages
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.jobs.data import (
    Data,
    check_task,
    is_convolutional,
    open_data,
    open_loader,
    pick_device,
)
from dcil_dsl.jobs.expect import check_claims
from dcil_dsl.jobs.prepare import (
    Note,
    Prepared,
    Warn,
    counted_classes,
    load_recipe,
    prepare,
    refuse_class_order,
)
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_data
from dcil_dsl.plan.show import show_summary
from dcil_dsl.plan.text import page_of
from dcil_dsl.tasks import task_of
from dcil_dsl.training.conflicts import check_machine_allows, check_plan_allows
from dcil_dsl.training.distributed import Ranks, may_be_restarted, was_restarted
from dcil_dsl.training.machine import Options
from dcil_dsl.training.optim import check_rate
from dcil_dsl.training.options import RunOptions
from dcil_dsl.training.run import RunFolder, full_path, open_run, weights_to_resume
from dcil_dsl.words.registry import extra


@dataclass(frozen=True)
class Batches:
    """The training and the held-out data in batches. bad_images: None where one ends the run."""

    dataset: Dataset
    train: BatchLoader
    val: BatchLoader
    bad_images: BadImages | None

    @property
    def loaders(self) -> tuple[BatchLoader, BatchLoader]:
        return self.train, self.val


@dataclass(frozen=True)
class Job:
    """A run that can begin: every check before the first step has passed."""

    prepared: Prepared
    dual: Dual
    batches: Batches
    options: Options

    @property
    def plan(self) -> Plan:
        return self.prepared.plan

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe


def options_here(given: RunOptions, ranks: Ranks) -> Options:
    """The options of a run on this process. InputError where this machine does not allow them."""
    resume = _resumes(given, ranks)
    if resume and given.out is None:
        raise InputError("--resume needs the folder of the run", help="name it with --out DIR")
    device = str(pick_device(given.device, ranks))
    options = Options(**vars(given) | {"device": device, "resume": resume}, ranks=ranks)
    check_machine_allows(options)
    return options


def open_job(
    recipe: str | Path | Recipe,
    model: str | nn.Module,
    data: Data,
    options: Options,
    warn: Warn,
    note: Note,
) -> Job:
    """Open the data, build the model, resolve the recipe, compile; refuse what cannot train."""
    recipe = load_recipe(recipe, options.overrides, warn)
    dataset = open_data(data, options.directory, recipe.data.channels, recipe.data.length)
    check_task(recipe, dataset)
    for line in dataset.notes:
        note(line)
    options = replace(options, weights=_first_weights(options))
    _note_other_data(recipe, dataset, note)
    batches = _open_batches(recipe, dataset, options, note)
    prepared = _prepare(recipe, model, batches, options, warn, note)
    refuse_class_order(prepared.traced.model, dataset.classes)
    if not options.quiet:
        print(show_summary(prepared.plan, page_of(sys.stdout)), flush=True)
    dual = compile_plan(prepared.plan, prepared.traced)
    dual.teach(prepared.networks, copies=False)  # nobody else has them
    _refuse_frozen(dual)
    check_plan_allows(prepared.plan, options)
    if is_convolutional(prepared.plan):
        options = replace(options, channels_last=True)
        for loader in batches.loaders:
            loader.layout = torch.channels_last
    return Job(prepared, dual, batches, options)


def _resumes(given: RunOptions, ranks: Ranks) -> bool:
    """Whether --resume was given, or torchrun has restarted a job that had begun its run."""
    asked = given.resume or given.anyway
    if not may_be_restarted():
        return asked
    if given.out is None:
        raise InputError(
            "--max-restarts needs the folder of the run, to find it again",
            help="name it with --out DIR",
        )
    begun = was_restarted() and RunFolder(Path(given.out)).plan.is_file() and not ranks.is_refused
    return asked or ranks.any(begun)


def _first_weights(options: Options) -> str | None:
    """The weights to load first, by a full path. InputError where the run to resume has others."""
    given = None if options.weights is None else str(options.weights)
    if options.resume and options.out is not None:  # fails here, before a model is built
        return weights_to_resume(open_run(options.out), given)
    return None if given is None else full_path(given)


def _open_batches(recipe: Recipe, dataset: Dataset, options: Options, note: Note) -> Batches:
    images, ranks = resolve_data(recipe.data), options.ranks
    bad = BadImages(note) if options.on_bad_image == "skip" else None
    seed = recipe.train.seed if options.seed is None else options.seed
    device = torch.device(options.device)
    val, train = (
        open_loader(
            dataset, part, images, device, options.workers, ranks, seed=seed, on_bad_image=bad
        )
        for part in ("val", "train")
    )
    if images.batch_size < ranks.count:
        raise InputError(
            f"a batch of {count(images.batch_size, 'example')} has no part for each of "
            f"{ranks.count} processes",
            help="`batch_size` in the recipe's `data` is the total of all processes",
        )
    if images.batch_size > train.num_examples:
        note(
            f"a batch of {images.batch_size:,} is larger than the training part of {dataset.name}, "
            f"{count(train.num_examples, 'example')}: an epoch is one step"
        )
    return Batches(dataset, train, val, bad)


def _prepare(
    recipe: Recipe,
    model: str | nn.Module,
    batches: Batches,
    options: Options,
    warn: Warn,
    note: Note,
) -> Prepared:
    """The recipe resolved for the model and these batches; refused if no run can follow it."""
    prepared = prepare(
        recipe,
        model,
        warn=warn,
        note=note,
        steps_per_epoch=math.ceil(batches.train.num_batches / recipe.train.accumulate),
        example=batches.val.example(),
        classes=len(batches.dataset.classes) or None,
        task=task_of(batches.dataset.task),
        texts=batches.dataset.texts,
        data=batches.dataset.name,
        weights=None if options.weights is None else str(options.weights),
        precision=options.precision,
        seed=options.seed,
        compare=True,
        class_counts=counted_classes(recipe, batches.dataset),
        teachers=options.teachers,
    )
    check_claims(prepared.plan, task_of(batches.dataset.task))
    check_rate(prepared.plan)
    if not options.resume:
        _refuse_broken_weights(prepared.traced.model)
    if options.shard:
        extra("sharding.refusals").check_shardable(prepared.plan, options.ranks)
    return prepared


def _refuse_broken_weights(model: nn.Module) -> None:
    """InputError for NaN in the first weights and buffers, and for an infinite parameter.

    Constants of a model, which are buffers, may be infinite.
    """
    parameters = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    broken = parameters + [n for n, b in model.named_buffers() if b.isnan().any()]
    if broken:
        more = f" and {count(len(broken) - 5, 'tensor')} more" if len(broken) > 5 else ""
        raise InputError(
            "the model starts from numbers that are not finite, in "
            f"{', '.join(f'`{name}`' for name in broken[:5])}{more}",
            help="check how the model is built and which weights it loads",
        )


def _refuse_frozen(dual: Dual) -> None:
    if not any(parameter.requires_grad for _, parameter in dual.trainable()):
        raise InputError(
            "no weight of the model learns: requires_grad is False for all of them",
            help="model.requires_grad_(True)",
        )


def _note_other_data(recipe: Recipe, dataset: Dataset, note: Note) -> None:
    if recipe.data.name is not None and recipe.data.name.replace("_", "-") != dataset.name:
        note(f"the recipe was written for the data `{recipe.data.name}`; these are {dataset.name}")
