"""`dcil sensitivity`: how sensitive a trained network is to pruning each layer.

In:   a recipe, a run folder or nothing; a model, data, trained weights.
Out:  a Profile: what report.py draws and the target `sensitivity(...)` reads.
Not:  no training, no choice of targets, no file written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from torch.utils.data import Subset

from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.data import Dataset
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.data.examples import collates, source_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.sensitivity.measure import measure_layers
from dcil_dsl.extras.sensitivity.profile import LayerProfile, Profile
from dcil_dsl.jobs.data import (
    example_of,
    is_convolutional,
    make_loader,
    open_data,
    pick_device,
)
from dcil_dsl.jobs.inspect import rebuild
from dcil_dsl.jobs.prepare import Note, Warn, load_recipe, prepare, warn_in_python
from dcil_dsl.lang import loads
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.facts import is_private
from dcil_dsl.plan.plan import Plan
from dcil_dsl.tasks import task_of
from dcil_dsl.training.machine import lay_out_weights
from dcil_dsl.training.run import RunFolder, open_run, read_command
from dcil_dsl.zoo.pretrained import own_weights

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
NUM_BATCHES = 8
NO_RECIPE = """language 1
mix {
  path dense = full
  update kept by dense
  loss cross_entropy(dense)
  deploy dense
}
train {
  epochs    = 1ep
  optimizer = sgd(lr=0.1)
}
"""


@dataclass(frozen=True)
class Network:
    """What is measured: a module, the layers that could be pruned, where its weights come from."""

    model: nn.Module
    plan: Plan
    dataset: Dataset
    weights: str


def measure_sensitivity(
    source: str | Path | Recipe | None,
    model: str | nn.Module | None,
    data: str | Dataset | None,
    *,
    overrides: Mapping[str, str] = {},
    directory: str | Path | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    num_batches: int = NUM_BATCHES,
    part: str = "val",
    levels: Sequence[float] = LEVELS,
    warn: Warn | None = None,
    note: Note | None = None,
    tell: Callable[[str], None] = lambda name: None,
    anyway: bool = False,
) -> Profile:
    """Prune each layer alone at each level, and measure.

    source       a recipe, whose `model` and `data` blocks are used; a run folder, which brings
                 model, data and the weights of its full path; None: the defaults
    weights      trained weights, as for `dcil compile`
    num_batches  the number of batches, of examples spread evenly over the part
    part         "val", the held-out examples, or "train", the training examples, not augmented:
                 what is chosen by the former should not be judged by them
    tell         called with the name of each layer before it is measured
    anyway       of a run: accept a model whose forward is not the one that was trained

    Raises RecipeError, InputError.
    """
    warn, note = warn or warn_in_python, note or (lambda text: None)
    if part not in ("val", "train"):
        raise InputError(f"there is no part `{part}`", help="val or train")
    place = pick_device(device)
    if isinstance(source, str | Path) and Path(source).is_dir():
        network = _of_run(source, model, data, directory, weights, overrides, note, anyway)
    else:
        network = _of_recipe(source, model, data, directory, weights, overrides, warn, note)
    plan = network.plan
    task, given = task_of(network.dataset.task), getattr(network.dataset, part)
    own = source_of(network.dataset.name, part, given, *collates(network.dataset))
    wanted = min(num_batches * plan.data.batch_size, len(own.examples))
    spread = evenly_spaced(own.examples, wanted)
    dataset = replace(network.dataset, val=spread, collate=own.collate)
    loader = make_loader(plan, dataset, "val", place, workers)
    try:
        batches = list(islice(loader.epoch(0), num_batches))
    finally:
        loader.close()
    module = network.model.to(place)
    if is_convolutional(plan):
        lay_out_weights(module)
    whole, found = measure_layers(
        module, [layer.parameter for layer in plan.layers], batches, levels, tell, task
    )
    return Profile(
        model=plan.model.name or "",
        data=network.dataset.name,
        weights=network.weights,
        part=cast(Literal["val", "train"], part),
        num_batches=len(batches),
        num_examples=sum(map(task.count, batches)),
        levels=tuple(levels),
        loss=whole.loss,
        metric=task.metrics[0],
        score=whole.score,
        layers=tuple(
            LayerProfile(
                parameter=layer.parameter,
                module=layer.module,
                num_weights=layer.num_weights,
                losses=tuple(one.loss - whole.loss for one in found[layer.parameter]),
                scores=tuple(one.score - whole.score for one in found[layer.parameter]),
                private=is_private(layer.module, plan),
            )
            for layer in plan.layers
        ),
    )


def evenly_spaced(examples: Any, count: int) -> Any:
    """`count` of the examples at even distances: folders hold one class after the other."""
    indices = [i * len(examples) // count for i in range(count)]
    if isinstance(examples, Tensors):
        return Tensors(examples.images[indices], examples.labels[indices])
    return Subset(examples, indices)


def _of_recipe(
    source: str | Path | Recipe | None,
    model: str | nn.Module | None,
    data: str | Dataset | None,
    directory: str | Path | None,
    weights: str | None,
    overrides: Mapping[str, str],
    warn: Warn,
    note: Note,
) -> Network:
    if model is None or data is None:
        missing = " and ".join(
            name for name, value in (("--model SPEC", model), ("--train DATA", data)) if not value
        )
        raise InputError(
            f"{missing}: what is to be measured, and on which held-out data",
            help="a run folder in the recipe's place brings both",
        )
    recipe = loads(NO_RECIPE) if source is None else load_recipe(source, overrides, warn)
    # Its rules do not matter here, and may ask for the very profile that is being made.
    recipe = replace(recipe, rules=())
    dataset = open_data(data, directory, recipe.data.channels, recipe.data.length)
    prepared = prepare(
        recipe,
        model,
        warn=warn,
        note=note,
        steps_per_epoch=1,
        classes=len(dataset.classes) or None,
        task=task_of(dataset.task),
        texts=dataset.texts,
        example=example_of(recipe, dataset),
        data=dataset.name,
        weights=weights,
    )
    weights = weights or (own_weights(model) if isinstance(model, str) else None)
    if weights is None and isinstance(model, str):
        note(
            "warning: the weights are fresh, so what is measured says nothing about a trained "
            "network; --weights FILE or a run folder brings trained ones"
        )
    return Network(prepared.traced.model, prepared.plan, dataset, weights or "")


def _of_run(
    run: str | Path,
    model: str | nn.Module | None,
    data: str | Dataset | None,
    directory: str | Path | None,
    weights: str | None,
    overrides: Mapping[str, str],
    note: Note,
    anyway: bool,
) -> Network:
    given = {"--weights": weights, "--set": overrides}
    if any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise InputError(f"{names}: a run folder brings its own")
    if isinstance(model, nn.Module):
        raise InputError("a run folder takes a SPEC, not a module", help="leave `model` out")
    folder: RunFolder = open_run(run)
    plan, command = folder.read_plan(), read_command(folder)
    data = data or command["data"]
    if data is None:
        raise InputError(f"{folder.path} does not say its data", help="name them with --train DATA")
    dataset = open_data(
        data, directory or command["directory"], plan.data.channels, plan.data.length
    )
    dual, at = rebuild(folder, plan, model, dataset.texts, anyway)
    step = at.step
    full = [path.name for path in plan.paths if not path.view.prunes]
    path = full[0] if full else plan.deploy
    if not full and plan.groups:
        note("warning: the run has no path that sees all weights; the pruned ones count as zeros")
    note(f"the weights of path {path} after {count(step, 'step')}")
    return Network(collapse(dual, path), plan, dataset, f"{folder.path}, path {path}, step {step}")
