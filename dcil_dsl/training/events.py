"""TensorBoard's events: the settings of a run, and the numbers of each epoch.

In:   a Plan; lines of metrics.jsonl; an open SummaryWriter.
Out:  hparams, which TensorBoard lists and sorts runs by; scalars such as "top1/sparse".
Not:  no file is opened (result.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcil_dsl.plan.plan import Plan

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Setting = str | int | float | bool
RULE = {"target", "granularity", "score", "schedule", "refresh", "freeze"}


def settings_of(plan: Plan) -> dict[str, Setting]:
    """The settings that tell runs apart, by dotted names: "train.optimizer.lr", "rule1.target"."""
    rules = {
        f"rule{i}": group.model_dump(mode="json", include=RULE)
        for i, group in enumerate(plan.groups, 1)
    }
    return dict(
        _flat(
            {
                "recipe": plan.recipe.name,
                "model": plan.model.name,
                "data": plan.data.name,
                "batch_size": plan.data.batch_size,
                "steps": plan.num_steps,
                **rules,
                "train": plan.train.model_dump(mode="json"),
            }
        )
    )


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one line by name: "losses/...", "top1/sparse", "density/...", "lr"."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": number for inner, number in value.items()}
        elif isinstance(value, list):  # names, of which a curve can tell how many
            found[name] = len(value)
        elif name not in ("step", "epoch"):
            found[name] = value
    return found


def write_settings(writer: SummaryWriter, plan: Plan, metrics: Sequence[str]) -> None:
    """The settings as hparams, whose metrics are the scalars of the paths that come later."""
    from torch.utils.tensorboard.summary import hparams

    tags = [f"{metric}/{path.name}" for metric in metrics for path in plan.paths]
    tags.append("sparsity_measured")
    file_writer = writer._get_file_writer()
    for summary in hparams(settings_of(plan), dict.fromkeys(tags, 0.0))[:2]:
        file_writer.add_summary(summary)
    writer.flush()


def write_events(writer: SummaryWriter, line: Mapping[str, Any]) -> None:
    """The numbers of one line as scalars."""
    for name, number in numbers_of(line).items():
        writer.add_scalar(name, number, line["step"])
    writer.flush()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Nested values by dotted names. A word is its name, then its settings; None is left out."""
    for name, value in values.items():
        place = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if "word" in value:
                yield place, str(value["word"])
                value = value.get("settings") or {}
            yield from _flat(value, f"{place}.")
        elif isinstance(value, str | int | float):
            yield place, value
        elif value:
            yield place, json.dumps(value)
