"""The data and the device of a job.

In:   the name of a data set and its folder, a plan, the processes.
Out:  Dataset; a Loader of the training or the held-out part; torch.device.
Not:  no reading (data/) and no training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from dcil_dsl.data import Dataset, Loader, open_dataset
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.data.datasets import known_record, require_data
from dcil_dsl.data.examples import ExampleLoader
from dcil_dsl.data.sources import dataset_of, is_callable_spec, open_callable
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Data as PlanData
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_data
from dcil_dsl.tasks import IMAGES, task_of
from dcil_dsl.training.distributed import Ranks

Data = str | Dataset | tuple[Any, Any]


def open_data(
    data: Data, directory: str | Path | None, channels: int, length: int | None = None
) -> Dataset:
    """A data set by its name, or what a callable of the user's own returns.

    data    a name of DATASETS; "my.py:make" or "package.module:callable"; a Dataset; or a pair of a
            training and a held-out part, whose task follows from its first example
    length  of texts, in tokens
    Raises InputError that says where it was looked for.
    """
    if isinstance(data, tuple):
        return dataset_of(data, "data")
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, str):
        raise InputError(
            f"the data are of type {type(data).__name__}",
            help='they are a name ("digits"), "my.py:make", a Dataset, or a pair of a training and '
            "a held-out part",
        )
    if is_callable_spec(data):
        return open_callable(data, directory)
    require_data(data, directory)
    options = {"length": length} if length is not None and _takes_length(data) else {}
    return open_dataset(data, directory, channels=channels, **options)


def _takes_length(data: str) -> bool:
    record = known_record(data)
    return record is not None and "length" in record.options


def make_loader(
    plan: Plan,
    dataset: Dataset,
    part: Literal["train", "val"],
    device: torch.device,
    workers: int | None,
) -> BatchLoader:
    """One part of the data in batches, as the plan and the machine have them."""
    loader = open_loader(dataset, part, plan.data, device, workers, seed=plan.train.seed)
    if is_convolutional(plan):
        loader.layout = torch.channels_last
    return loader


def open_loader(
    dataset: Dataset,
    part: Literal["train", "val"],
    data: PlanData,
    device: torch.device,
    workers: int | None,
    ranks: Ranks = Ranks(),
    seed: int = 0,
    on_bad_image: Callable[[str], None] | None = None,
) -> BatchLoader:
    """Batches of what a recipe says of its data."""
    if dataset.task != IMAGES.name:
        return ExampleLoader(
            dataset,
            part,
            batch_size=data.batch_size,
            seed=seed,
            workers=workers,
            device=device,
            rank=ranks.rank,
            world_size=ranks.count,
        )
    return Loader(
        dataset,
        part,
        batch_size=data.batch_size,
        image_size=data.image_size,
        channels=data.channels,
        augment=data.augment,
        seed=seed,
        device=device,
        workers=num_workers(dataset, part, workers, ranks.local_count),
        rank=ranks.rank,
        world_size=ranks.count,
        on_bad_image=on_bad_image,
    )


def example_of(recipe: Recipe, dataset: Dataset) -> Inputs:
    """The inputs of the model for the first held-out example."""
    data = resolve_data(recipe.data)
    return open_loader(dataset, "val", data, torch.device("cpu"), workers=0).example()


def check_task(recipe: Recipe, dataset: Dataset) -> None:
    """InputError where the recipe does not fit the task of the data: a loss, or words for images.

    The message has the place in the recipe.
    """
    task = task_of(dataset.task)
    for loss in recipe.losses:
        try:
            task.refuse_loss(loss.term)
        except InputError as error:
            raise InputError(f"{loss.span}: {error.message}", help=error.help) from None
    if task is not IMAGES and (recipe.data.augment or recipe.data.image_size is not None):
        word = "augment" if recipe.data.augment else "image_size"
        raise InputError(
            f"{recipe.data.span}: `{word}` changes images, and {dataset.name} is for the task "
            f"`{task.name}`",
            help="leave it out; what changes an example belongs in the data set",
        )
    if recipe.data.length is not None and not _takes_length(dataset.name):
        raise InputError(
            f"{recipe.data.span}: `length` is of texts, in tokens, and {dataset.name} is none of "
            "the named data sets of texts",
            help="leave it out",
        )


def refuse_other_tasks(dataset: Dataset, what: str) -> None:
    """InputError where `what` needs images and their classes, and the data have neither."""
    if dataset.task != IMAGES.name:
        raise InputError(
            f"{what} needs data of the task `{IMAGES.name}`, and {dataset.name} is for "
            f"`{dataset.task}`"
        )


def num_workers(dataset: Dataset, part: str, asked: int | None, processes: int) -> int:
    """The number of data loader workers; data in memory need none, whatever was requested.

    processes   of this job on this machine, each with as many workers
    """
    if isinstance(getattr(dataset, part), Tensors):
        return 0
    return min(8, max(1, _num_cores() // processes)) if asked is None else asked


def _num_cores() -> int:
    """The cores that this process may run on. A quota of CPU time does not show here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_convolutional(plan: Plan) -> bool:
    """Whether channels_last pays: only 2-d convolutions have kernels for it."""
    return any(len(layer.shape) == 4 for layer in plan.layers)


def pick_device(device: str, ranks: Ranks = Ranks()) -> torch.device:
    """auto | cpu | cuda | cuda:N | mps as an available device. Each process has its own GPU.

    auto never picks mps: not every operation that a recipe may need exists for it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.count > 1 and device == "cuda":
        device = f"cuda:{ranks.local}"
    elif ranks.count > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device}: each process takes the GPU of its local rank")
    kind, _, index = device.partition(":")
    if device != "mps" and kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise InputError(f"there is no device `{device}`", help="auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            "--device mps: torch finds no Apple GPU on this machine",
            help="it needs macOS on Apple silicon and a torch built for it",
        )
    if kind == "mps" and ranks.count > 1:
        raise InputError("--device mps: one process at a time; leave torchrun out")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = count(torch.cuda.device_count(), "GPU")
        raise InputError(f"--device {device}: torch finds {found} on this machine")
    if index:
        torch.cuda.set_device(device)  # NCCL and compiled kernels use the current device
    return torch.device(device)
