"""A checkpoint goes on under another plan, as far as it can.

In:   the checkpoint of a run whose recipe, model or data have changed since, and the new state.
Out:  the state, at the beginning of the epoch that the run was in.
Not:  no weight is invented: one that the checkpoint lacks, or has in another shape, is an error.

Weights and statistics are taken; masks are made anew, as the new plan has them there; momentum and
the like where the new optimiser keeps it, averages where the new plan asks for them. Steps are
counted in epochs of the new length.
"""

from __future__ import annotations

import json
from pathlib import Path

from dcil_dsl.plan.plan import AdamW, Plan
from dcil_dsl.plan.schedule import last_refresh
from dcil_dsl.training.checkpoint import (
    Position,
    State,
    load_checkpoint,
    load_model,
    read_checkpoint,
    under,
)
from dcil_dsl.training.differences import fingerprint
from dcil_dsl.training.metrics import masks_step
from dcil_dsl.training.optim import load_optimizer_state

ADAM = ("step", "exp_avg", "exp_avg_sq")


def load_anyway(path: Path, state: State) -> None:
    """As load_checkpoint, whatever plan the checkpoint belongs to. Raises InputError."""
    plan: Plan = state.dual.plan
    tensors, header = read_checkpoint(path, shards=state.shards)
    if header["plan"] == fingerprint(plan):
        load_checkpoint(path, state)
        return
    masks = {f"{name}_mask" for name in state.dual.masks}
    saved = under("model/", tensors)
    weights = {name: t for name, t in saved.items() if not name.endswith("_mask")}
    current = state.dual.state_dict()
    load_model(state.dual, weights | {name: current[name] for name in masks}, path)

    known = {name for name, _ in state.dual.trainable()}
    kept = ADAM if isinstance(plan.train.optimizer, AdamW) else ("momentum_buffer",)
    moving = {
        key: value
        for key, value in under("optimizer/", tensors).items()
        if key.rpartition("/")[0] in known and key.rpartition("/")[2] in kept
    }
    load_optimizer_state(state.optimizer, moving)
    averages = under("average/", tensors)
    current = state.dual.state_dict()
    for name, mean in state.average.items():
        mean.copy_(averages.get(name, current[name]))

    before = Position(**json.loads(header["position"]))
    state.position = Position(
        step=before.epoch * plan.steps_per_epoch, epoch=before.epoch, seconds=before.seconds,
        trained=before.trained, waited=before.waited, scaler=before.scaler,
    )  # fmt: skip
    state.position.told = before.told and state.position.step >= plan.num_steps
    last = masks_step(state.position.step)
    for step in sorted({last_refresh(group, last) for group in plan.groups}):
        state.dual.begin_step(step)  # moves the masks that are due then, each at its last time
    state.sums.zero_()
    for name, mask in state.dual.masks.items():
        state.before[name].copy_(mask)
