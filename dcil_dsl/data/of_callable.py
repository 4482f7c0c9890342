"""Data of one's own: what a callable returns, as a Dataset.

In:   "my.py:make" or "package.module:callable"; a Dataset, or a training and a held-out part.
Out:  a Dataset, its task named.
Not:  nothing is run that the user has not named on this command line.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.examples import source_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.task import described
from dcil_dsl.zoo.spec import call_in_words, user_callable

RETURNS = "return (train, held_out), or dcil_dsl.data.Dataset(name, train, held_out, task=...)"


def is_callable_spec(data: str) -> bool:
    """Whether this names a callable, and no data set of the table."""
    return ":" in data


def open_callable(spec: str, directory: str | Path | None) -> Dataset:
    """Call it, with --data as its argument `directory` if it has one.

    InputError with file and line for what its code raises.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise InputError(
            f"`{spec}` is not a data spec", help="my.py:make, or package.module:callable"
        )
    make = user_callable(source, name, spec)
    try:
        takes_directory = "directory" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some builtins have none
        takes_directory = False
    if directory is not None and not takes_directory:
        raise InputError(
            f"`{spec}` takes no folder", help="give it a parameter `directory`, or leave --data out"
        )
    given = {"directory": None if directory is None else Path(directory)}
    return dataset_of(call_in_words(make, given if takes_directory else {}, spec), spec)


def dataset_of(given: Any, name: str) -> Dataset:
    """A Dataset as it is, under `name`; a pair with the task that its first example shows."""
    if isinstance(given, Dataset):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InputError(f"`{name}` returned {described(given)}", help=RETURNS)
    train, val = given
    return Dataset(name, train, val, task=_task_of(name, train))


def _task_of(name: str, train: Any) -> str:
    """Real numbers as targets make a regression, a whole number a classification.

    A dictionary, or more or fewer than two parts, are the arguments of a model with its own loss.
    """
    source = source_of(name, "train", train)
    if not len(source.examples):
        raise InputError(f"the train part of {name} holds no example")
    try:
        batch = source.collate([source.examples[0]])
    except Exception as error:  # of the user's own code: of any type
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot make a batch of the first example of {name}: {type(error).__name__}: {text}",
            help=RETURNS,
        ) from error
    if isinstance(batch, Mapping) or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return "own-loss"
    targets = batch[1]
    if isinstance(targets, Tensor) and targets.is_floating_point():
        return "regression"
    if isinstance(targets, Tensor) and targets.dim() == 1 and targets.dtype != torch.bool:
        return "classification"
    return "own-loss"
