"""A checkpoint goes on under another plan, as far as it can.

In:   the checkpoint of a run whose recipe, model or data have changed since, and the new state.
Out:  the state, at the beginning of the epoch that the run was in.
Not:  no weight is invented: one that the checkpoint lacks, or has in another shape, is an error.

Weights and statistics are taken, and what both plans keep beside a weight; masks are made anew, as
the new plan has them there; momentum and the like are taken where the new optimiser keeps it,
averages where the new plan asks for them, what a step remembers where the new one does. Steps are
counted in epochs of the new length.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import last_refresh
from dcil_dsl.training.checkpoint import (
    Position,
    State,
    is_of,
    load_checkpoint,
    load_model,
    position_of,
    read_checkpoint,
    under,
)
from dcil_dsl.training.metrics import masks_step
from dcil_dsl.training.optim import load_optimizer_state


def load_anyway(path: Path, state: State) -> None:
    """As load_checkpoint, whatever plan the checkpoint belongs to. Raises InputError."""
    plan: Plan = state.dual.plan
    tensors, header = read_checkpoint(path, placement=state.dual.placement)
    if is_of(header, plan, path):
        load_checkpoint(path, state)
        return
    saved, current = under("model/", tensors), state.dual.state_dict()
    ours = {name: t for name, t in current.items() if _is_the_plans(name, state.dual)}
    theirs = {name: t for name, t in saved.items() if not _is_the_plans(name, state.dual)}
    kept = {n: saved[n] for n, t in ours.items() if n in saved and saved[n].shape == t.shape}
    load_model(state.dual, theirs | ours | kept, path)

    known = {name for name, _ in state.dual.trainable()}
    moving = {
        key: value
        for key, value in under("optimizer/", tensors).items()
        if key.rpartition("/")[0] in known
        and key.rpartition("/")[2] in plan.train.optimizer.entries(value)
    }
    try:
        load_optimizer_state(state.optimizer, moving, state.dual.plan.train.optimizer)
    except ValueError as error:
        raise InputError(f"{path} holds another optimiser: {error}") from None
    averages = under("average/", tensors)
    current = state.dual.state_dict()
    for name, mean in state.average.items():
        mean.copy_(averages.get(name, current[name]))
    for name, remembered in under("memory/", tensors).items():
        if name in state.memory and state.memory[name].shape == remembered.shape:
            state.memory[name].copy_(remembered)

    before = position_of(header, path)
    state.position = Position(
        step=before.epoch * plan.steps_per_epoch,
        epoch=before.epoch,
        seconds=before.seconds,
        trained=before.trained,
        waited=before.waited,
        scaler=before.scaler,
    )
    if state.position.step > plan.num_steps:
        raise InputError(
            f"{path} is after {count(before.epoch, 'epoch')}, more than the recipe has now: "
            f"step {state.position.step:,} of {plan.num_steps:,}",
            help="raise `epochs` in the recipe's `train`",
        )
    state.position.logged = before.logged and state.position.step >= plan.num_steps
    _make_masks(state)
    state.sums.zero_()
    for name, mask in state.dual.masks.items():
        state.before[name].copy_(mask)


def _make_masks(state: State) -> None:
    """Each group's masks as they were made the last time before the position."""
    dual, masks = state.dual, {}
    last = {g: last_refresh(g, masks_step(state.position.step)) for g in dual.plan.groups}
    for step in sorted(set(last.values())):
        dual.refresh(step)  # of all groups: kept are those whose time it is
        names = [name for group, at in last.items() if at == step for name in group.parameters]
        masks |= {name: dual.masks[name].clone() for name in names}
    for name, mask in masks.items():
        dual.masks[name].copy_(mask)


def _is_the_plans(name: str, dual: nn.Module) -> bool:
    """Whether a tensor is what a plan keeps beside a weight, "conv1.weight_mask", "..._score"."""
    parameters = [parameter for parameter, _ in dual.named_parameters()]
    return name not in parameters and any(name.startswith(f"{p}_") for p in parameters)
