"""What a run starts from: random weights, or given ones and how good the network is with them.

In:   a Dual whose masks keep every weight, held-out batches, the run folder.
Out:  start.json, which a run that is resumed keeps; a line on the display.
Not:  no weight changes. Fresh weights are not evaluated: their accuracy is that of chance.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.side_effects import seed_generators
from dcil_dsl.training.evaluate import evaluate_plain
from dcil_dsl.training.files import write_text
from dcil_dsl.training.machine import Options
from dcil_dsl.training.process import Wish
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder
from dcil_dsl.words.metrics import metric_text


def record_start(
    dual: Dual,
    loader: BatchLoader,
    run: RunFolder,
    options: Options,
    display: Display,
    wish: Wish,
    is_fresh: bool,
) -> None:
    """Write start.json, once in the life of a run: {"weights": "random"}, or {"metrics": {...}}
    of the network as it was given, unpruned.

    A run that resumes from a checkpoint has not loaded its first weights: where an earlier version
    made it, nothing is written. Nor is where a signal comes first, or with --shard, where no
    process holds the whole network.
    """
    found: dict[str, Any] = {"weights": "random"}
    if options.ranks.any(run.start.exists() or options.resume and run.had_checkpoint):
        return
    if not is_fresh:
        if options.shard:
            return
        metrics = _evaluated(dual, loader, options, wish)
        if metrics is None:
            return
        found = {"metrics": metrics}
        display.note(f"before training, unpruned: {_text(metrics)}")
    if options.ranks.is_first:
        write_text(run.start, json.dumps(found, indent=2) + "\n")


def _evaluated(
    dual: Dual, loader: BatchLoader, options: Options, wish: Wish
) -> dict[str, float] | None:
    try:
        model = collapse(dual).to(options.device)
        seed_generators(dual.plan.train.seed, model)  # a model may draw in evaluation too
        return evaluate_plain(model, dual.plan, loader, options, wish)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory before the first step: {str(error).splitlines()[0]}",
            help="use --precision bf16, or a smaller `batch_size` in the recipe's `data`",
        ) from None


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metric_text(name, value, '.2%')}" for name, value in metrics.items())
