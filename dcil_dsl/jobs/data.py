"""The data and the device of a job.

In:   the name of a data set and its folder, a plan, the processes.
Out:  Dataset; a Loader of the training or the held-out part; torch.device.
Not:  no reading (data/) and no training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch

from dcil_dsl.data import Dataset, Loader, open_dataset
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.data.places import look
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.plan import Data, Plan
from dcil_dsl.training.distributed import Ranks


def open_data(data: str | Dataset, directory: str | Path | None, channels: int) -> Dataset:
    """Open a data set by its name. InputError names the places searched."""
    if not isinstance(data, str):
        return data
    look(data, None if directory is None else Path(directory))
    return open_dataset(data, None if directory is None else Path(directory), channels=channels)


def make_loader(
    plan: Plan, dataset: Dataset, part: Literal["train", "val"], device: torch.device,
    workers: int | None,
) -> Loader:  # fmt: skip
    """A loader of one part of the data, as the plan describes it."""
    return open_loader(
        dataset, part, plan.data, device, workers, seed=plan.train.seed,
        channels_last=is_convolutional(plan),
    )  # fmt: skip


def open_loader(
    dataset: Dataset,
    part: Literal["train", "val"],
    data: Data,
    device: torch.device,
    workers: int | None,
    ranks: Ranks = Ranks(),
    **more: Any,
) -> Loader:
    """A loader of one part of the data, as the `data` block describes it; `more` as for Loader."""
    return Loader(
        dataset,
        part,
        batch_size=data.batch_size,
        image_size=data.image_size,
        channels=data.channels,
        augment=data.augment,
        device=device,
        workers=num_workers(dataset, part, workers, ranks.beside),
        rank=ranks.rank,
        world_size=ranks.count,
        **more,
    )


def num_workers(dataset: Dataset, part: str, asked: int | None, beside: int) -> int:
    """The number of data loader workers; data in memory need none, whatever was requested.

    beside  processes of this job on this machine, each with as many workers
    """
    if isinstance(getattr(dataset, part), Tensors):
        return 0
    return min(8, max(1, _num_cores() // beside)) if asked is None else asked


def _num_cores() -> int:
    """The cores that this process may run on. A quota of CPU time does not show here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_convolutional(plan: Plan) -> bool:
    """Whether channels_last pays: only 2-d convolutions have kernels for it."""
    return any(len(layer.shape) == 4 for layer in plan.layers)


def pick_device(device: str, ranks: Ranks = Ranks()) -> torch.device:
    """auto | cpu | cuda | cuda:N as an available device. Each process has its own GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.count > 1 and device == "cuda":
        device = f"cuda:{ranks.local}"
    elif ranks.count > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device}: each process takes the GPU of its local rank")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise InputError(f"there is no device `{device}`", help="auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = count(torch.cuda.device_count(), "GPU")
        raise InputError(f"--device {device}: torch finds {found} on this machine")
    if index:
        torch.cuda.set_device(device)  # NCCL and compiled kernels use the current device
    return torch.device(device)
