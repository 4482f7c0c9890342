"""Resolve a recipe for a model: the first thing that every verb does.

In:   a recipe (a path or a Recipe), a model (a SPEC or a module), options of the run.
Out:  Prepared: the Plan of the model as built, the traced model, example inputs.
Not:  nothing is written and no file of data is read: without data, the length of an epoch is the
      known one of the named data set.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.data.contents import class_counts
from dcil_dsl.data.dataset import Dataset, TextSize
from dcil_dsl.data.datasets import known_record
from dcil_dsl.diagnostics import Diagnostic, Diagnostics, InputError, RecipeWarning
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.jobs.data import example_of, open_data
from dcil_dsl.jobs.teachers import open_teachers
from dcil_dsl.lang import load, loads
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.calls import subsample_input
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.layers import unused_layers
from dcil_dsl.model.trace import Traced, TraceError, require_module, trace_model
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.text import percent
from dcil_dsl.tasks import IMAGES, Task, task_of
from dcil_dsl.words.augment import crop_sizes
from dcil_dsl.zoo import build_model, example_inputs, load_weights
from dcil_dsl.zoo.example import takes_keywords, takes_one_image
from dcil_dsl.zoo.pretrained import own_weights
from dcil_dsl.zoo.spec import is_of_library

ASSUMED_STEPS = 1000  # per epoch, for an unknown data set
ASSUMED_SIZE = 224
IMAGE_REMEDY = "set `image_size` or `channels` in the recipe's `data` block"

Warn = Callable[[Diagnostic], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe resolved for a model. `plan.model` and `plan.data` are those in use.

    is_fresh  whether the weights are random: those of a library's network without weights; what
              somebody's own code builds may be trained
    networks  those that teach, where they were asked for
    """

    recipe: Recipe
    plan: Plan
    traced: Traced
    example: Inputs
    is_fresh: bool
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


def prepare(
    recipe: Recipe,
    model: str | nn.Module,
    *,
    warn: Warn,
    note: Note,
    steps_per_epoch: int | None = None,
    example: Inputs | Tensor | None = None,
    classes: int | None = None,
    data: str | None = None,
    weights: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
    compare: bool = False,
    class_counts: tuple[int, ...] | None = None,
    task: Task | None = None,
    texts: TextSize | None = None,
    teachers: Mapping[str, nn.Module | str] | None = None,
) -> Prepared:
    """Build the model or take the given one, load weights, trace, resolve.

    steps_per_epoch, example, classes, data, class_counts, texts  facts of the data; None without
             data
    example  a batch of one example, (1, C, H, W) of images; None: that of a data set that needs no
             files, inputs of the size in the recipe or in the record of the data set, or the inputs
             of the model (zoo/example.py)
    task     of the data; None: that of the record of the data set, else images
    teachers the networks of `network()`; None: those of the recipe are not opened either
    compare  run the model and its graph on the same inputs, and refuse a difference
    Raises RecipeError and InputError.
    """
    if not isinstance(model, str):
        require_module(model)
    _check_channels(recipe, data)
    seed = recipe.train.seed if seed is None else seed
    torch.manual_seed(seed)
    options = dict(recipe.model.options)
    is_fresh = isinstance(model, str) and is_of_library(model)
    name = (
        model if isinstance(model, str) else f"{type(model).__module__}:{type(model).__qualname__}"
    )
    _note_another_model(recipe, name, note)
    if isinstance(model, str):
        wanted = recipe.model.classes if recipe.model.classes is not None else classes
        model = build_model(model, wanted, options)
        weights = weights or own_weights(name)
    if weights is not None:
        is_fresh = False
        before = getattr(model, "transform_input", None)
        for line in load_weights(model, weights, name):
            note(f"weights of {weights}: {line}")
        if getattr(model, "transform_input", None) != before:
            options["transform_input"] = True  # so that `dcil eval` builds the same network
    record = known_record(data or recipe.data.name)
    if task is None:
        task = task_of(record.task) if record is not None else IMAGES
    is_images = task is IMAGES and (example is not None or takes_one_image(model))
    if example is not None:
        inputs = Inputs.of(example)
    elif record is not None and record.files is None and not record.channels:
        inputs = example_of(recipe, open_data(record.name, None, recipe.data.channels))
    elif takes_one_image(model) and not takes_keywords(model):
        inputs = Inputs((torch.zeros(1, recipe.data.channels, *(image_size(recipe, data),) * 2),))
    else:
        inputs = example_inputs(model, batch=1)
    refuse_texts(model, texts)
    if steps_per_epoch is None:
        steps_per_epoch = assumed_steps(recipe, data, note)
    _refuse_odd_weights(model)
    try:
        # Before the model runs: a lazy one would take its shapes from this example.
        traced = trace_model(model, inputs)
        if is_images:
            num_outputs = count_outputs(model, inputs, strict=classes is not None)
        else:
            num_outputs = recipe.model.classes if recipe.model.classes is not None else classes
        if compare:
            traced = compare_with_model(traced, model, inputs)
    except TraceError as error:
        raise InputError(str(error), help="`dcil explain E401` says what can be traced") from error
    if classes is not None and num_outputs is not None:
        _compare_classes(num_outputs, classes, data, note)

    for path, module in unused_layers(model, traced.layers):
        note(
            f"the forward never uses `{path}` ({type(module).__name__}): no rule applies to it, "
            "and it is not changed"
        )

    report = Diagnostics()
    plan = resolve_recipe(recipe, traced, steps_per_epoch, report, class_counts)
    for diagnostic in report.warnings:
        warn(diagnostic)
    networks: Mapping[str, nn.Module] = {}
    if teachers is not None:
        plan, networks = open_teachers(recipe, plan, model, inputs, teachers, note)
    if is_images:
        _refuse_small_images(plan, model, inputs)
    return Prepared(
        recipe,
        _as_built(plan, name, options, num_outputs, data, precision, seed),
        traced,
        inputs,
        is_fresh,
        networks,
    )


def counted_classes(recipe: Recipe, dataset: Dataset) -> tuple[int, ...] | None:
    """Training examples by class, for a loss that weighs by them. InputError if unknown or 0."""
    asks = [loss for loss in recipe.losses if getattr(loss.term, "classes", None) is not None]
    if not asks:
        return None
    counts, span = class_counts(dataset), asks[0].span
    if counts is None:
        raise InputError(
            f"{span}: `balanced` weighs classes by how often they occur, and {dataset.name} does "
            "not tell its labels without reading its images",
            help="give its training part `targets`, a list of class numbers",
        )
    never = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if never:
        raise InputError(
            f"{span}: `balanced` has no weight for a class that never occurs, and {dataset.name} "
            f"has no training example of {', '.join(never[:5])}",
            help="leave the class out of the data, or `classes` out of the loss",
        )
    return counts


def load_recipe(recipe: str | Path | Recipe, overrides: Mapping[str, str], warn: Warn) -> Recipe:
    """Read a recipe and report its warnings."""
    recipe = read_recipe(recipe, overrides)
    for diagnostic in recipe.warnings:
        warn(diagnostic)
    return recipe


def read_recipe(recipe: str | PathLike[str] | Recipe, overrides: Mapping[str, str]) -> Recipe:
    """A checked recipe: the given one, or that of a file, or of a text (a str with a newline).

    RecipeError; InputError for a missing file.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise InputError(
                "overrides belong to the loading of a recipe",
                help="dcil.load(path, overrides={...})",
            )
        return recipe
    if isinstance(recipe, str) and "\n" in recipe:
        return loads(recipe, overrides=dict(overrides) or None)
    if isinstance(recipe, (str, PathLike)):
        return load(recipe, dict(overrides) or None)
    raise InputError(
        f"a recipe is a Recipe, a path or a text, and this is {type(recipe).__name__}",
        help="dcil.load(path) or dcil.loads(text)",
    )


def warn_in_python(diagnostic: Diagnostic) -> None:
    """Issue a W diagnostic as a Python warning at the line that called this package."""
    place = f"{diagnostic.span}: " if diagnostic.span else ""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("dcil_dsl."):
        level, frame = level + 1, frame.f_back
    text = f"{place}{diagnostic.code} {diagnostic.message}"
    warnings.warn(text, RecipeWarning, stacklevel=level)


def no_warning(diagnostic: Diagnostic) -> None:
    """Drop a warning."""


def no_note(text: str) -> None:
    """Drop a note."""


def image_size(recipe: Recipe, data: str | None) -> int:
    """The side of the images in pixels: the recipe's, its crop's, or the data set's own."""
    if recipe.data.image_size is not None:
        return recipe.data.image_size
    crops = crop_sizes(recipe.data.augment)
    return crops[-1] if crops else _known(recipe, data)[1]


def assumes_size(recipe: Recipe) -> bool:
    """Whether nothing says how large the images are, so that ASSUMED_SIZE is taken."""
    record = known_record(recipe.data.name)
    is_said = recipe.data.image_size is not None or bool(crop_sizes(recipe.data.augment))
    return not is_said and (record is None or record.image_size is None)


def assumed_steps(recipe: Recipe, data: str | None, note: Note) -> int:
    """Steps per epoch without data."""
    examples = _known(recipe, data)[0]
    if examples is None:
        note(
            f"the length of an epoch is unknown without data: {ASSUMED_STEPS} steps are assumed; "
            "set it with --steps-per-epoch"
        )
        return ASSUMED_STEPS
    batches = math.ceil(examples / (recipe.data.batch_size or 128))
    return math.ceil(batches / recipe.train.accumulate)


def count_outputs(
    model: nn.Module, inputs: Inputs, strict: bool = True, remedy: str = IMAGE_REMEDY
) -> int | None:
    """The number of class scores that a model returns for an image.

    InputError, with `remedy`, where the model refuses the image. For an output that is not one row
    of scores per image: InputError if `strict`, otherwise None.
    """
    from dcil_dsl.words.tensors.outputs import logits_of

    modes = {module: module.training for module in model.modules()}
    inputs = inputs.to(next((p.device for p in model.parameters()), torch.device("cpu")))
    try:
        with torch.no_grad():
            model.eval()
            output = model(*inputs.args, **inputs.kwargs)
    except Exception as error:  # a model may refuse an image with any error
        (image,) = [*inputs.args, *inputs.kwargs.values()][:1]
        shape = " x ".join(map(str, image.shape[1:]))
        raise InputError(
            f"the model does not take images of {shape}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}",
            help=remedy,
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    try:
        logits = logits_of(output)
    except InputError:
        if strict:
            raise
        return None
    if logits.dim() != 2:
        if not strict:
            return None
        shape = " x ".join(map(str, logits.shape))
        raise InputError(f"the model returns a tensor of {shape}, not one row of class scores")
    return logits.shape[1]


def _refuse_small_images(plan: Plan, model: nn.Module, inputs: Inputs) -> None:
    """InputError where a path's images are too small for the model."""
    for path in plan.paths:
        if path.size < 1:
            args: Any = subsample_input(inputs.args, 1.0, path.size)
            kwargs: Any = subsample_input(inputs.kwargs, 1.0, path.size)
            size = f"path `{path.name}` sees images at {percent(path.size)} of their size"
            count_outputs(model, Inputs(args, kwargs), strict=False, remedy=f"{size}: raise `size`")


def refuse_texts(model: nn.Module, texts: TextSize | None) -> None:
    """InputError where a model of transformers has no row for a token or a position of the texts.

    Else the first batch that holds such a token would fail.
    """
    config: Any = getattr(model, "config", None)
    if texts is None or not takes_keywords(model):
        return
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is not None and vocabulary < texts.num_tokens:
        raise InputError(
            f"the tokenizer has {count(texts.num_tokens, 'token')}, and the model {vocabulary:,}",
            help=f"`vocab_size = {texts.num_tokens}` in the recipe's `model` block",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and 0 < longest < texts.length:
        raise InputError(
            f"the texts have up to {count(texts.length, 'token')}, and the model takes {longest:,}",
            help=f"`length = {longest}` in the recipe's `data` block, or "
            f"`max_position_embeddings = {texts.length}` in its `model` block",
        )


def refuse_class_order(model: nn.Module, classes: Sequence[str]) -> None:
    """InputError where a model of transformers has the data's classes under other numbers.

    Its trained head would be evaluated with, and trained towards, the wrong classes.
    """
    config: Any = getattr(model, "config", None)
    names: dict[int, str] = getattr(config, "id2label", None) or {}
    own = [str(names[number]).casefold() for number in sorted(names)]
    given = [name.casefold() for name in classes]
    if own == given or sorted(own) != sorted(given):
        return
    place = next(number for number, (one, other) in enumerate(zip(own, given)) if one != other)
    raise InputError(
        f"class {place} is `{names[place]}` in the model and `{classes[place]}` in the data",
        help="the classes of a data set are in the order of their names; write the model's numbers "
        "as labels, or rename its classes in config.json",
    )


def _refuse_odd_weights(model: nn.Module) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError("the weights of the model are on the device `meta`, without values")
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise InputError(
            f"the model has weights of type {names}; training starts from float32",
            help="call .float() on it; --precision bf16 still computes in 16 bits",
        )


def _known(recipe: Recipe, data: str | None) -> tuple[int | None, int]:
    """Training examples and side of the images, from the record of the data set."""
    record = known_record(data or recipe.data.name)
    if record is None:
        return None, ASSUMED_SIZE
    return record.num_train, record.image_size or ASSUMED_SIZE


def _check_channels(recipe: Recipe, data: str | None) -> None:
    """E205 where the data set does not open with the recipe's number of channels."""
    record, channels = known_record(data or recipe.data.name), recipe.data.channels
    report = Diagnostics()
    if record is not None and record.channels and channels not in record.channels:
        report.add(
            "E205",
            f"`{record.name}` has images of 1 or 3 channels, not {channels}",
            recipe.data.span,
            help="1 makes them grey, 3 repeats grey ones",
        )
    report.stop_if_wrong()


def _note_another_model(recipe: Recipe, name: str, note: Note) -> None:
    if recipe.model.name not in (None, name, name.rpartition(":")[2]):
        note(f"the recipe was written for the model `{recipe.model.name}`; this is {name}")


def _compare_classes(num_outputs: int, classes: int, data: str | None, note: Note) -> None:
    remedy = f"--set model.classes={classes}"
    if classes > num_outputs:
        has = count(classes, "class", "classes")
        fact = f"{data} has {has}, the model tells only {num_outputs} apart"
        raise InputError(fact, help=remedy)
    if classes < num_outputs:
        note(
            f"warning: the model has {count(num_outputs, 'output')} and {data} only "
            f"{count(classes, 'class', 'classes')}; to "
            f"leave none unused: {remedy}"
        )


def _as_built(
    plan: Plan,
    name: str,
    options: dict[str, Any],
    num_outputs: int | None,
    data: str | None,
    precision: str | None,
    seed: int,
) -> Plan:
    """The plan with the options of the run, so that plan.json rebuilds the trained model."""
    overrides, train = dict(plan.recipe.overrides), dict[str, Any]()
    if precision is not None and precision != plan.train.precision:
        overrides["train.precision"] = train["precision"] = precision
    if seed != plan.train.seed:
        overrides["train.seed"], train["seed"] = str(seed), seed
    return plan.model_copy(
        update={
            "recipe": plan.recipe.model_copy(update={"overrides": overrides}),
            "model": plan.model.model_copy(
                update={"name": name, "classes": num_outputs, "options": options}
            ),
            "data": plan.data.model_copy(update={"name": data or plan.data.name}),
            "train": plan.train.model_copy(update=train),
        }
    )
