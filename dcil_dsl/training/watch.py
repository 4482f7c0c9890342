"""The metric of the deployed path, evaluation by evaluation, and what follows from it.

In:   the accuracies of an evaluation, the Position with those before.
Out:  the share of the rate (`plateau`), whether the run ends (`early`), the best checkpoint.
Not:  nothing is evaluated (evaluate.py).

Everything is a function of the list in the checkpoint, so that a resumed run does the same.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import last_refresh, limit_at, sparsity_at
from dcil_dsl.training.checkpoint_files import Position, keep_as
from dcil_dsl.training.sparsity import masks_step
from dcil_dsl.words.metrics import METRICS


def note(
    plan: Plan, at: Position, metric: str, accuracies: Mapping[str, Mapping[str, float]]
) -> None:
    """Add the metric of an evaluation after a whole epoch to the list; larger is better there."""
    value = accuracies.get(plan.deploy, {}).get(metric)
    if value is not None and math.isfinite(value):
        is_less_better = metric in METRICS and METRICS[metric].less_is_better
        at.watched.append((at.step, -value if is_less_better else value))


def rate_share(plan: Plan, at: Position) -> float:
    """What the plan's rate is multiplied by, for rewinds and for `plateau`."""
    return at.rate_factor * plan.train.rate.share_after(at.watched)


def is_over(plan: Plan, at: Position) -> bool:
    """Whether the run has ended before its last step."""
    stop = plan.train.stop
    return at.stopped or stop is not None and stop.ends(sparse_values(plan, at))


def sparse_values(plan: Plan, at: Position) -> list[tuple[int, float]]:
    """The evaluations whose masks had the sparsity of the end."""
    return [(step, value) for step, value in at.watched if is_sparse(plan, step)]


def is_sparse(plan: Plan, num_done: int) -> bool:
    """Whether the masks after as many updates have the sparsity of the end of the run."""
    now, end = masks_step(num_done), masks_step(plan.num_steps)
    return all(
        asked_at(group, last_refresh(group, now)) == asked_at(group, last_refresh(group, end))
        for group in plan.groups
        for asked_at in (sparsity_at, limit_at)
    )


def best_step(plan: Plan, at: Position) -> int | None:
    """The first evaluation with the best metric at full sparsity; None before there is one."""
    found = max(sparse_values(plan, at), key=lambda one: one[1], default=None)
    return None if found is None else found[0]


def best_of(checkpoint: Path) -> Path:
    return checkpoint.with_name("best.safetensors")


def keep_best(plan: Plan, at: Position, checkpoint: Path) -> None:
    """Keep what was just saved at `checkpoint`, if `checkpoint = best` and it is the best."""
    if plan.train.checkpoint != "best" or best_step(plan, at) != at.step:
        return
    best = best_of(checkpoint)
    best.unlink(missing_ok=True)
    keep_as(best, checkpoint)
    if not best.exists():  # a file system without second names
        shutil.copyfile(checkpoint, best)
