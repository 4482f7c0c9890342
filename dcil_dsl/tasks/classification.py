"""One class for each example.

In:   (inputs, class numbers (B,)); where a recipe mixes examples, shares of classes (B, K).
Out:  top-1 and top-5 accuracy.
Not:  no classes of pixels or words: the output has one row of scores for each example.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.tasks.task import Task
from dcil_dsl.words.tensors.outputs import logits_of
from dcil_dsl.words.tensors.widest import widest


class Classification(Task):
    """Any inputs.

    An example whose largest score is not a finite number is not right, whatever its class. A score
    of -inf excludes a class. top5 exists where there are more than five classes.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("top1", "top5")
    trained: ClassVar[str] = "top1"
    default_loss: ClassVar[str] = "cross_entropy"

    def measured(self, num_outputs: int | None) -> tuple[str, ...]:
        return self.metrics if num_outputs is None or num_outputs > 5 else ("top1",)

    def check(self, output: Any, targets: Any) -> None:
        logits, labels = logits_of(output), targets
        if logits.dim() != 2:
            raise InputError(
                f"the model's output has shape {tuple(logits.shape)}, not (batch, classes)",
                help="the task says what an output is; the tasks are in docs/how-to/tasks.md",
            )
        shares = labels.is_floating_point()
        if labels.dim() != 1 + shares:
            raise InputError(
                f"the targets of a batch have the shape {tuple(labels.shape)}, and a class number "
                "for each example has (batch,)"
            )
        if not shares and len(labels) and int(labels.max()) < -1:
            raise InputError(
                f"no example of a batch has a class: the class numbers are {int(labels.max())} and "
                "less",
                help="classes are counted from 0; -100 marks an example that has none",
            )
        largest = labels.shape[1] - 1 if shares else int(labels.max())
        if largest >= logits.shape[1]:
            raise InputError(
                f"the data has a class number {largest}, counted from 0; the model has "
                f"{count(logits.shape[1], 'class', 'classes')}",
                help="set `classes` in the recipe's `model` to the number that the data has",
            )

    def score(self, output: Any, targets: Any, count: int) -> Tensor:
        logits = logits_of(output)
        correct = num_correct(logits, targets[: len(logits)]).to(widest(logits.device))
        return correct * (count / len(logits))  # of the examples it has seen

    def compared(self, output: Any, targets: Any, count: int) -> dict[str, tuple[Any, ...]]:
        logits = logits_of(output)
        classes = targets.argmax(dim=1) if targets.is_floating_point() else targets
        classes = classes.masked_fill(self.broken(output, count), -1)
        return dict.fromkeys(self.measured(logits.shape[1]), (logits, classes))

    def broken(self, output: Any, count: int) -> Tensor:
        return ~logits_of(output).amax(dim=1).isfinite()


class ImageClassification(Classification):
    """Images that the recipe's `data` block resizes and augments."""

    name: ClassVar[str] = "image-classification"
    noun: ClassVar[str] = "images"


def num_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """How many of the labels (B,) are among the k largest logits (B, C); a scalar, not synced.

    Of labels that are shares of classes (B, K), as mixed examples have them, the largest counts.
    """
    if labels.is_floating_point():
        labels = labels.argmax(dim=1)
    if k == 1:
        return (logits.argmax(dim=1) == labels).sum()
    return (logits.topk(k, dim=1).indices == labels[:, None]).sum()
