"""The base of every task, and the batches that it reads.

In:   a batch: any structure of tuples, lists and dictionaries with tensors in it.
Out:  Task; slices and stand-ins of batches.
Not:  no task of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.words.losses import Loss, ModelLoss


class Task(ABC):
    """What a batch is, and what is measured of a model's outputs.

    name          as TASKS, a data set and an error have it
    noun          what the inputs are called in errors
    metrics       names of METRICS, the first is shown during a run
    trained       the metric that is summed up over the training batches
    default_loss  what a recipe of this task usually minimizes
    """

    name: ClassVar[str]
    noun: ClassVar[str] = "inputs"
    metrics: ClassVar[tuple[str, ...]]
    trained: ClassVar[str]
    default_loss: ClassVar[str]

    def inputs(self, batch: Any) -> Inputs:
        """What the model is called with. Here a batch is a pair of inputs and targets."""
        return as_call(pair(self.name, batch)[0])

    def targets(self, batch: Any) -> Any:
        """What a loss compares the outputs with; None where there is nothing."""
        return pair(self.name, batch)[1]

    def count(self, batch: Any) -> int:
        """The number of examples in a batch."""
        return num_examples(self.inputs(batch))

    def collate(self, items: list[Any]) -> Any:
        """A batch of items."""
        return default_collate(items)

    def check_item(self, item: Any) -> None:
        """InputError where an example of a data set cannot be learned from; read in a worker."""
        return

    @abstractmethod
    def check(self, output: Any, targets: Any) -> None:
        """InputError where the targets do not fit what the model returns for the first of them."""

    @abstractmethod
    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        """The sum over `count` examples of the metric `trained`, float64; part of a compiled step.

        The output may be of the first examples alone; then the sum is extrapolated to all.
        """

    def measured(self, num_outputs: int | None) -> tuple[str, ...]:
        """The metrics of a model with as many outputs."""
        return self.metrics

    @abstractmethod
    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        """For each metric that this output has, the arguments of its update."""

    def settings(self, output: Any) -> dict[str, Any]:
        """The settings of the metrics that an output determines, as the number of classes."""
        return {}

    @abstractmethod
    def broken(self, output: Any, count: int) -> Tensor:
        """For each example, whether the output has no finite answer."""

    def refuse_loss(self, loss: Loss) -> None:
        """InputError for a loss that has no meaning here."""
        if isinstance(loss, ModelLoss):
            raise InputError(
                f"`{loss.label}` needs a model that is given its labels, and the task "
                f"`{self.name}` gives it {self.noun} alone",
                help="data of the task `own-loss` give the model all of a batch: "
                "--train my.py:make",
            )


def pair(task: str, batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(
        f"a batch of the task `{task}` is a pair of inputs and targets, and this is "
        f"{described(batch)}",
        help="return (inputs, targets) from the data set, or use the task `own-loss`",
    )


def described(batch: Any) -> str:
    """What a batch is, in a few words."""
    if isinstance(batch, dict):
        return f"a dictionary of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


def as_call(inputs: Any) -> Inputs:
    """A tuple is positional arguments, a dictionary keyword arguments, all else one argument."""
    if isinstance(inputs, tuple) and not isinstance(inputs, Tensor):
        return Inputs(tuple(inputs))
    if isinstance(inputs, dict):
        return Inputs((), dict(inputs))
    return Inputs((inputs,))


def num_examples(inputs: Inputs) -> int:
    """The length of the first argument, which is a tensor, a list or a tuple."""
    first = next(iter([*inputs.args, *inputs.kwargs.values()]), None)
    if isinstance(first, (list, tuple)):
        return len(first)
    tensor = next(inputs.tensors(), None)
    if tensor is None or not tensor.dim():
        raise InputError(f"the inputs of a batch hold no examples: they are {described(first)}")
    return int(tensor.shape[0])


def sliced(batch: Any, count: int, start: int, stop: int) -> Any:
    """Some of the examples of a batch of `count`: rows of tensors, entries of lists.

    What has another length belongs to no example and stays as it is.
    """

    def is_of_examples(node: Any) -> bool:
        return isinstance(node, list) and len(node) == count

    def cut(leaf: Any) -> Any:
        if is_of_examples(leaf):
            return leaf[start:stop]
        is_rows = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == count
        return leaf[start:stop] if is_rows else leaf

    return pytree.tree_map(cut, batch, is_leaf=is_of_examples)


def stand_in(batch: Any) -> Any:
    """A batch of one example of zeros, for a process that has none: all run the model together."""
    found = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    if not found:
        raise InputError("the last batch has fewer examples than there are processes")
    return tensors_mapped(
        lambda t: t.new_zeros(1, *t.shape[1:]) if t.dim() and not t.shape[0] else t, batch
    )


def tensors_mapped(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def rows_finite(values: Tensor) -> Tensor:
    """For each example, whether all of its numbers are finite."""
    return torch.isfinite(values).reshape(len(values), -1).all(dim=1)
