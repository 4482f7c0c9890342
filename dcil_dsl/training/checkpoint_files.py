"""The checkpoints of a run: their files, and the headers in them.

In:   the path checkpoint/last.safetensors of a run folder, the plan.
Out:  the newest checkpoint, the previous one, the last good one; the Position that a header holds.
Not:  no tensor is read or written (checkpoint.py).

    last.safetensors       the state of the run
    previous.safetensors   its state at the end of the previous epoch, for a rewind
    parts-<step>/          instead of the first, where several processes wrote their rows
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import (
    AllowInfNan,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from safetensors import SafetensorError, safe_open

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import fingerprint, stored_fingerprint

FORMAT = "dcil checkpoint 1"
Seconds = Annotated[NonNegativeFloat, AllowInfNan(False)]
INDEX = "parts.json"  # of a checkpoint in parts


@dataclass
class Position:
    """The progress of a run: all state that is not a tensor.

    step       updates done
    epoch      whole epochs done
    batch      batches done of the epoch after them
    logged     whether metrics.jsonl has the line that belongs to this step
    examples   seen in this epoch; `examples_by` loss while it was open, by path while it ran
    seconds    of the whole run
    trained    seconds of the steps of the whole run; epoch_trained: of this epoch's
    waited     seconds of them in which the loop waited for its next batch; epoch_waited too
    scaler     the state of the fp16 gradient scaler, numbers only
    watched    the metric of the deployed path after each evaluated epoch: (step, value, larger is
               better)
    stopped    whether the run ended here before its last step
    rewinds    how often the run went back: at which step what was not finite, to
               which step
    """

    step: NonNegativeInt = 0
    epoch: NonNegativeInt = 0
    batch: NonNegativeInt = 0
    logged: bool = False
    examples: NonNegativeInt = 0
    examples_by: dict[str, NonNegativeInt] = field(default_factory=dict)
    seconds: Seconds = 0.0
    trained: Seconds = 0.0
    epoch_trained: Seconds = 0.0
    waited: Seconds = 0.0
    epoch_waited: Seconds = 0.0
    scaler: dict[str, FiniteFloat | int] = field(default_factory=dict)
    rewinds: list[dict[str, int | str]] = field(default_factory=list)
    watched: list[tuple[NonNegativeInt, FiniteFloat]] = field(default_factory=list)
    stopped: bool = False

    @property
    def rate_factor(self) -> float:
        """The factor on the plan's learning rate."""
        return 0.5 ** len(self.rewinds)


def previous_of(path: Path) -> Path:
    """The file of the checkpoint that was at `path` before."""
    return path.with_name("previous.safetensors")


def keep_as(kept: Path, path: Path) -> None:
    """Keep the file at `path` under the name `kept` too, when another replaces it at `path`.

    A hard link. A file system without hard links keeps nothing.
    """
    draft = kept.with_name(f".{kept.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        os.link(path, draft)
    except OSError:
        return
    try:
        os.replace(draft, kept)
    finally:
        draft.unlink(missing_ok=True)  # it is still there where both were one file already


def newest_of(path: Path) -> Path | None:
    """The checkpoint from which a run resumes: the file `path`, or the folder of parts next to it.

    Each replaces the other once it is complete; if both exist, a run was killed before it removed
    one.
    """
    parts = newest_parts(path)
    if parts is None or not path.exists():
        return parts or (path if path.exists() else None)
    return path if path.stat().st_mtime_ns > parts.stat().st_mtime_ns else parts


def newest_parts(path: Path) -> Path | None:
    """The folder of parts next to the file `path` with the most steps, if there is one."""
    found = [folder for folder in path.parent.glob("parts-*") if (folder / INDEX).is_file()]
    return max(found, key=lambda folder: folder.name, default=None)


def remove_parts(path: Path, but: Path | None = None) -> None:
    """All folders of parts, of killed processes too."""
    for folder in [*path.parent.glob("parts-*"), *path.parent.glob(".parts-*")]:
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def last_good(path: Path, plan: Plan) -> Path:
    """The newest checkpoint at the end of an epoch; where there is none, the newest."""
    previous = previous_of(path)
    if newest_of(path) == path and not is_end_of_epoch(path, plan):
        if is_end_of_epoch(previous, plan):
            return previous
    return path


def is_end_of_epoch(path: Path, plan: Plan) -> bool:
    """Whether there is a checkpoint of this plan from the end of an epoch."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return is_of(header, plan, path) and not position_of(header, path).batch
    except (SafetensorError, OSError, InputError):
        return False


def is_of(header: Mapping[str, str], plan: Plan, path: Path) -> bool:
    """Whether a checkpoint of the run folder around `path` belongs to `plan`.

    A run that an earlier version began has a plan.json without later fields, or of format 1, and
    checkpoints with the fingerprint of its content; they are this plan's if the contents are equal.
    """
    if header.get("plan") == fingerprint(plan):
        return True
    try:
        text = (path.parent.parent / "plan.json").read_text(encoding="utf-8")
        stored = json.loads(text)
        if stored_fingerprint(stored) != header.get("plan"):
            return False
        return fingerprint(Plan.from_json(text)) == fingerprint(plan)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def position_of(header: Mapping[str, str], path: Path, plan: Plan | None = None) -> Position:
    """InputError where the header has none, or one that is not a place in the run of `plan`."""
    text = _renamed(header.get("position", ""))
    try:
        position = TypeAdapter(Position).validate_json(text)
        missing = {"step", "epoch", "batch", "logged"} - json.loads(text).keys()
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the whole"
        raise InputError(f"the checkpoint {path} does not say where it stands: {where}") from None
    if missing:
        where = min(missing)
        raise InputError(f"the checkpoint {path} does not say where it stands: {where}")
    if plan is not None:
        steps = -(-position.batch // plan.train.accumulate)
        if (
            steps > plan.steps_per_epoch
            or position.step != position.epoch * plan.steps_per_epoch + steps
        ):
            raise InputError(
                f"the checkpoint {path} contradicts itself: step {position.step:,} is not "
                f"after {count(position.epoch, 'epoch')} of {plan.steps_per_epoch:,} steps and "
                f"{count(position.batch, 'batch', 'batches')}"
            )
        if position.step > plan.num_steps:
            raise InputError(
                f"the checkpoint {path} is of step {position.step:,}, the run has "
                f"{plan.num_steps:,}"
            )
    return position


def _renamed(position: str) -> str:
    """The position under its present names: until November 2026 `logged` was `told`."""
    try:
        values = json.loads(position)
    except (ValueError, RecursionError):
        return position
    if not isinstance(values, dict) or "told" not in values:
        return position
    return json.dumps({"logged" if name == "told" else name: x for name, x in values.items()})
