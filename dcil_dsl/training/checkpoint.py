"""Save everything that training changes, and load it, so that a run resumes to the same bits.

In:   a State: a dual graph, its optimizer, averages and memory, its Position.
Out:  checkpoint/last.safetensors: tensors, and a header of JSON; the State loaded from it, also
      under another plan, as far as tensors fit.
Not:  no state of a random generator: every draw of a step depends on the seed and the step alone
      (trainer.py), and so does every batch. Which file is read: checkpoint_files.py.

    model/<name>                     the dual graph's state, masks included
    optimizer/<parameter>/<entry>    momentum and the like
    average/<name>                   where the recipe asks for `ema` or `average`
    before/<parameter>               masks at the end of the last whole epoch, in mid-epoch only
    memory/<name>                    tensors that later steps need: Step.memory
    sums                             losses and counts of the epoch so far
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.privatize import is_of_mean
from dcil_dsl.compiler.teachers import set_step
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.schedule import last_refresh
from dcil_dsl.training.checkpoint_files import (
    FORMAT,
    Position,
    is_end_of_epoch,
    is_of,
    keep_as,
    newest_of,
    position_of,
    previous_of,
    remove_parts,
)
from dcil_dsl.training.differences import fingerprint
from dcil_dsl.training.files import cannot_write, write_atomically
from dcil_dsl.training.optim import load_optimizer_state, optimizer_state
from dcil_dsl.training.sparsity import check_sparsity, masks_step
from dcil_dsl.words.registry import extra


@dataclass
class State:
    """Everything that training changes. `average` is empty where the recipe has none.

    memory  what later steps need of the steps so far: Step.memory
    """

    dual: Dual
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    sums: Tensor
    before: dict[str, Tensor]
    position: Position
    memory: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, state: State) -> None:
    """Write the state. SparsityError, and no file, where the masks are not the plan's."""
    plan: Plan = state.dual.plan
    check_sparsity(state.dual, masks_step(state.position.step))
    tensors = {f"model/{name}": t for name, t in state.dual.state_dict().items()}
    tensors |= {f"optimizer/{name}": t for name, t in optimizer_state(state.optimizer).items()}
    tensors |= {f"average/{name}": t for name, t in state.average.items()}
    tensors |= {f"memory/{name}": t for name, t in state.memory.items()}
    tensors["sums"] = state.sums
    if state.position.batch:
        tensors |= {f"before/{name}": t for name, t in state.before.items()}
    # Copies: the file has each tensor once, row by row, whatever is tied or channels_last.
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    header = {
        "format": FORMAT,
        "plan": fingerprint(plan),
        "torch": torch.__version__,
        "position": json.dumps(asdict(state.position)),
    }
    if plan.teachers:
        header["teachers"] = json.dumps(
            {teacher.name: teacher.network.model_dump(mode="json") for teacher in plan.teachers}
        )
    if not state.dual.placement.is_whole:
        extra("sharding.checkpoint").save_parts(path, tensors, header, state.dual.placement)
        return
    header["digest"] = digest(tensors, header)

    def write(draft: Path) -> None:
        try:
            save_file(tensors, draft, metadata=header)
        except SafetensorError as error:
            raise cannot_write(path, error) from None
        if is_end_of_epoch(path, plan):
            keep_as(previous_of(path), path)

    write_atomically(path, write)
    remove_parts(path)


def load_checkpoint(path: Path, state: State) -> None:
    """Put a saved state back into `state`, which was made from the same plan.

    InputError where the file is missing or damaged, or belongs to another plan or model.
    """
    tensors, header = read_checkpoint(path, state.dual.plan, state.dual.placement)
    position = position_of(header, path, state.dual.plan)
    load_model(state.dual, under("model/", tensors), path)
    moving = under("optimizer/", tensors)
    for name in optimizer_state(state.optimizer):  # Adam's may be made later, momentum is there
        if name.endswith("/momentum_buffer") and name not in moving:
            raise InputError(f"{path} holds another optimizer: it lacks `{name}`")
    state.optimizer.state.clear()  # of steps that are being gone back over
    try:
        load_optimizer_state(state.optimizer, moving, state.dual.plan.train.optimizer)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} holds another optimizer: {error}") from None
    _fill(state.average, under("average/", tensors), path)
    _fill(state.memory, under("memory/", tensors), path)
    before = under("before/", tensors)
    _fill(state.before, before or {k: m.cpu() for k, m in state.dual.masks.items()}, path)
    _fill({"sums": state.sums}, {n: t for n, t in tensors.items() if n == "sums"}, path)
    state.position = position


def load_deployed(path: Path, dual: Dual) -> Position:
    """Load the weights that are evaluated and exported into `dual`: the averages, if any.

    InputError as in load_checkpoint; SparsityError where its masks are not what the plan asks.
    """
    tensors, header = read_checkpoint(path, dual.plan)
    load_model(dual, under("model/", tensors) | under("average/", tensors), path)
    position = position_of(header, path, dual.plan)
    check_sparsity(dual, masks_step(position.step))
    return position


def read_checkpoint(
    path: Path, plan: Plan | None = None, placement: Placement = ALL_ROWS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by name, and the header. InputError if damaged or not of `plan`, if given.

    placement  read only these rows of each tensor, whatever the layout of the checkpoint
    """
    found = newest_of(path)
    if found is None:
        help = _way_back(path) or "train first"
        raise InputError(f"there is no checkpoint {path}", help=help)
    if found == path:
        try:
            tensors, header = read_file(path, placement)
        except InputError as error:
            raise InputError(error.message, help=_way_back(path)) from None
    else:
        tensors, header = extra("sharding.checkpoint").read_parts(found, placement)
    if header.get("format") != FORMAT:
        raise InputError(f"{found} is not a checkpoint of this version ({FORMAT})")
    if plan is not None and not is_of(header, plan, path):
        raise InputError(
            f"the checkpoint {found} belongs to another plan",
            help="the command that trained it resumes from it with --resume-anyway",
        )
    return tensors, header


def read_file(
    path: Path, placement: Placement = ALL_ROWS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """read_checkpoint of the one file."""
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"the checkpoint {path} is damaged: it is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"the checkpoint {path} is damaged: {error}") from None
    if header.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this version ({FORMAT})")
    if header.pop("digest", None) != digest(tensors, header):
        raise InputError(f"the checkpoint {path} is damaged: its digest does not match")
    return {name: placement.own(name, tensor) for name, tensor in tensors.items()}, header


def _way_back(path: Path) -> str | None:
    """How to resume from the checkpoint before `path`, where that one is whole."""
    previous = previous_of(path)
    if previous == path or not previous.exists():
        return None
    try:
        step = position_of(read_file(previous)[1], previous).step
    except InputError:
        return None
    command = shlex.join(["mv", str(previous), str(path)])
    return f"the one before it, of step {step:,}, is intact; to resume from there\n  {command}"


def load_model(dual: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """load_state_dict, strictly, and with a plain error that names the first difference."""
    _same(dual.state_dict(), tensors, path)
    dual.load_state_dict(dict(tensors), strict=True)


def _fill(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    _same(places, tensors, path)
    for name, place in places.items():
        place.copy_(tensors[name])


def _same(want: Mapping[str, Tensor], have: Mapping[str, Tensor], path: Path) -> None:
    for name in dict.fromkeys([*want, *have]):
        if name not in have or name not in want:
            where = "lacks" if name not in have else "has, and the model has not,"
            raise InputError(f"{path} holds another model: it {where} `{name}`")
        if want[name].shape != have[name].shape:
            shapes = f"{tuple(have[name].shape)} and not {tuple(want[name].shape)}"
            raise InputError(f"{path} holds another model: `{name}` has shape {shapes}")
        if want[name].dtype != have[name].dtype:
            types = f"{have[name].dtype} and not {want[name].dtype}".replace("torch.", "")
            raise InputError(f"{path} holds another model: `{name}` is {types}")


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


# -- a checkpoint of another plan --------------------------------------------------------------


def load_anyway(path: Path, state: State) -> None:
    """Like load_checkpoint, for a checkpoint of any plan. Raises InputError."""
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
        raise InputError(f"{path} holds another optimizer: {error}") from None
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
    set_step(state.dual, state.position.step)
    state.sums.zero_()
    for name, mask in state.dual.masks.items():
        state.before[name].copy_(mask)


def _make_masks(state: State) -> None:
    """Each group's masks, as last made before the position."""
    dual, masks = state.dual, dict[str, Tensor]()
    last = {g: last_refresh(g, masks_step(state.position.step)) for g in dual.plan.groups}
    for step in sorted(set(last.values())):
        dual.refresh(step)  # of all groups: kept are those whose time it is
        names = [name for group, at in last.items() if at == step for name in group.parameters]
        masks |= {name: dual.masks[name].clone() for name in names}
    for name, mask in masks.items():
        dual.masks[name].copy_(mask)


def _is_the_plans(name: str, dual: Dual) -> bool:
    """Whether a tensor is a buffer that a plan adds to a weight, "conv1.weight_mask", or is of an
    average of a path."""
    if is_of_mean(name, dual.plan):
        return True
    parameters = [parameter for parameter, _ in dual.named_parameters()]
    return name not in parameters and any(name.startswith(f"{p}_") for p in parameters)
