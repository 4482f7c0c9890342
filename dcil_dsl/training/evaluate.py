"""The accuracy of every path.

In:   a dual graph and held-out batches.
Out:  {path: {"top1": fraction, "top5": fraction}}, with "not_finite", a count; plain errors
      where data and model do not fit.
Not:  no path is chosen and no weight is moved.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.loader import Loader
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.machine import Options, autocast, laid_out
from dcil_dsl.training.metrics import num_correct
from dcil_dsl.training.process import Wish
from dcil_dsl.training.step import BROKEN
from dcil_dsl.words.outputs import logits_of


@torch.no_grad()
def evaluate(
    dual: Dual, loader: Loader, options: Options = Options(), wish: Wish | None = None
) -> dict[str, dict[str, float]] | None:
    """Accuracy of every path on all of the data, in eval mode; the mode is put back.

    An example whose largest score is no finite number is not right, whatever its class; how many
    there are is counted as BROKEN, where there are any. A score of -inf excludes a class, and is
    none of them. top5 only where there are more than five classes. None if a wish to stop came in
    between.
    InputError where the data is empty or does not fit the model.
    """
    check_not_empty(loader)
    was_training = dual.training
    dual.eval()
    try:
        return _evaluate(dual, loader, options, wish or Wish())
    finally:
        dual.train(was_training)


def check_not_empty(loader: Loader) -> None:
    """InputError where there is nothing to evaluate on, better before an epoch than after it."""
    if not loader.num_examples:
        raise InputError("there is no data to evaluate on: its held-out part is empty")


def check_fit(dual: Dual, images: Tensor, labels: Tensor, options: Options) -> None:
    """Try one batch, in eval mode so that nothing moves. InputError where it does not fit."""
    if images.is_floating_point() and not images.isfinite().all():
        raise InputError(
            "the images of the first batch hold numbers that are not finite",
            help="look at the images, and at the mean and the deviation of the data",
        )
    was_training = dual.training
    dual.eval()
    try:
        with torch.no_grad(), autocast(dual.plan, options):
            outputs = dual(laid_out(images[:1], options))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        # An error of one thing only: had it been the model's own, tracing would have met it.
        raise InputError(
            f"the model does not take images of shape {tuple(images.shape[1:])}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            help="set `image_size` and `channels` in the recipe's `data` to what the model takes",
        ) from None
    finally:
        dual.train(was_training)
    for output in outputs.values():
        _check_labels(logits_of(output), labels)


def _evaluate(dual: Dual, loader: Loader, options: Options, wish: Wish):
    counts: dict[str, dict[str, Tensor]] = {}
    ranks = options.ranks
    for images, labels in loader.epoch(0):
        if ranks.any(wish.is_there):
            return None
        is_stand_in = not len(labels)
        if is_stand_in:  # no part of a small batch: no class is right for it
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_full((1,), -1)
        with autocast(dual.plan, options):
            outputs = dual(laid_out(images, options))
        for path, output in outputs.items():
            logits = logits_of(output)
            if path not in counts:
                _check_labels(logits, labels)
            broken = ~logits.amax(dim=1).isfinite()
            classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
            classes = classes.masked_fill(broken, -1)
            counted = counts.setdefault(path, {})
            for k in (1, 5) if logits.shape[1] > 5 else (1,):
                counted[f"top{k}"] = counted.get(f"top{k}", 0) + num_correct(logits, classes, k)
            counted[BROKEN] = counted.get(BROKEN, 0) + broken.sum() * (not is_stand_in)
    return {path: _shares(counted, loader, ranks) for path, counted in counts.items()}


def _shares(counted: Mapping[str, Tensor], loader: Loader, ranks: Ranks) -> dict[str, float]:
    sums = {name: ranks.sum(count) for name, count in counted.items()}
    broken = sums.pop(BROKEN)
    shares = {name: int(count) / loader.num_examples for name, count in sums.items()}
    return shares if bool(broken == 0) else shares | {BROKEN: int(broken)}


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2:
        raise InputError(
            f"the model's output has shape {tuple(logits.shape)}, not (batch, classes)",
            help="only classifiers can be trained so far",
        )
    shares = labels.is_floating_point()
    if not shares and len(labels) and int(labels.max()) < -1:
        raise InputError(
            f"no example of a batch has a class: the class numbers are {int(labels.max())} and "
            "less",
            help="classes are counted from 0; -100 marks an example that has none",
        )
    largest, num_classes = labels.shape[1] - 1 if shares else int(labels.max()), logits.shape[1]
    if largest >= num_classes:
        raise InputError(
            f"the data has a class number {largest}, counted from 0; the model has "
            f"{count(num_classes, 'class', 'classes')}",
            help="set `classes` in the recipe's `model` to the number that the data has",
        )
