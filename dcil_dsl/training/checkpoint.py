"""One file from which a run goes on as if it had never stopped.

In:   a dual graph, its optimiser and averages, and where in the run they stand.
Out:  checkpoint/last.safetensors: tensors, and a header of JSON; the same things put back.
      checkpoint/previous.safetensors: what it was at the end of the epoch before, to go back to.
Not:  no state of a random generator: every draw of a step depends on the seed and the step alone
      (trainer.py), and so does every batch.

    model/<name>                     the dual graph's state, masks included
    optimizer/<parameter>/<entry>    momentum and the like
    average/<name>                   where the recipe asks for `ema` or `average`
    before/<parameter>               masks at the end of the last whole epoch, in mid-epoch only
    memory/<name>                    what a step remembers of those before, where it does
    sums                             losses and counts of the epoch so far
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
from pydantic import (
    AllowInfNan,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.masking.placement import ALL_ROWS, Placement
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import fingerprint, fingerprint_1
from dcil_dsl.training.metrics import check_sparsity, masks_step
from dcil_dsl.training.optim import load_optimizer_state, optimizer_state
from dcil_dsl.training.run import (
    cannot_write,
    keep_as,
    newest_of,
    previous_of,
    remove_parts,
    write_atomically,
)
from dcil_dsl.words.registry import extra

FORMAT = "dcil checkpoint 1"
Seconds = Annotated[NonNegativeFloat, AllowInfNan(False)]


@dataclass
class Position:
    """Where a run stands, all that is not a tensor.

    step       updates done
    epoch      whole epochs done
    batch      batches done of the epoch after them
    logged     whether metrics.jsonl has the line that belongs to this step
    examples   seen in this epoch; `examples_by` loss while it was open, by path while it ran
    seconds    of the whole run
    trained    seconds of the steps of the whole run; epoch_trained: of this epoch's
    waited     seconds of them in which the loop stood still for its next batch; epoch_waited too
    scaler     the state of the fp16 gradient scaler, numbers only
    rewinds    how often the run went back (rewind.py): at which step what was not finite, to
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

    @property
    def rate_factor(self) -> float:
        """What the plan's learning rate is multiplied by."""
        return 0.5 ** len(self.rewinds)


@dataclass
class State:
    """Everything that training changes. `average` is empty where the recipe has none.

    memory  what later steps need of the steps so far: Step.memory
    """

    dual: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    sums: Tensor
    before: dict[str, Tensor]
    position: Position
    memory: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, state: State) -> None:
    """Write the state; or nothing, and raise SparsityError, if the masks are not the plan's."""
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
    if state.dual.placement.save(path, tensors, header):
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
            raise InputError(f"{path} holds another optimiser: it lacks `{name}`")
    state.optimizer.state.clear()  # of steps that are being gone back over
    try:
        load_optimizer_state(state.optimizer, moving, state.dual.plan.train.optimizer)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} holds another optimiser: {error}") from None
    _fill(state.average, under("average/", tensors), path)
    _fill(state.memory, under("memory/", tensors), path)
    before = under("before/", tensors)
    _fill(state.before, before or {k: m.cpu() for k, m in state.dual.masks.items()}, path)
    _fill({"sums": state.sums}, {n: t for n, t in tensors.items() if n == "sums"}, path)
    state.position = position


def load_deployed(path: Path, dual: nn.Module) -> Position:
    """Put the weights that are evaluated and exported into `dual`: the averages where kept.

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
    """All tensors by name and the header, proved whole, and of `plan` if given. Else InputError.

    placement  of each tensor only these rows are read, however the checkpoint is cut
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
            help="the command that trained it goes on from it with --resume-anyway",
        )
    return tensors, header


def read_file(
    path: Path, placement: Placement = ALL_ROWS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """read_checkpoint of the one file."""
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"the checkpoint {path} is damaged: it is no file")
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


def is_of(header: Mapping[str, str], plan: Plan, path: Path) -> bool:
    """Whether a checkpoint of the run folder around `path` belongs to `plan`.

    A run that an earlier version began has a plan.json of format 1, and checkpoints with the
    fingerprint of what it says; they are this plan's if it says the same.
    """
    if header.get("plan") == fingerprint(plan):
        return True
    try:
        text = (path.parent.parent / "plan.json").read_text(encoding="utf-8")
        stored = json.loads(text)
        if stored["format"] != 1 or fingerprint_1(stored) != header.get("plan"):
            return False
        return fingerprint(Plan.from_json(text)) == fingerprint(plan)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def is_end_of_epoch(path: Path, plan: Plan) -> bool:
    """Whether there is a checkpoint of this plan that is of no place in the middle of an epoch."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return is_of(header, plan, path) and not position_of(header, path).batch
    except (SafetensorError, OSError, InputError):
        return False


def position_of(header: Mapping[str, str], path: Path, plan: Plan | None = None) -> Position:
    """InputError where the header has none, or one that is no place in the run of `plan`."""
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
    """The position in the names of today: until November 2026 `logged` was `told`."""
    try:
        values = json.loads(position)
    except (ValueError, RecursionError):
        return position
    if not isinstance(values, dict) or "told" not in values:
        return position
    return json.dumps({"logged" if name == "told" else name: x for name, x in values.items()})


def _way_back(path: Path) -> str | None:
    """How to go on from the checkpoint before `path`, where that one is whole."""
    previous = previous_of(path)
    if previous == path or not previous.exists():
        return None
    try:
        step = position_of(read_file(previous)[1], previous).step
    except InputError:
        return None
    command = shlex.join(["mv", str(previous), str(path)])
    return f"the one before it, of step {step:,}, is whole; to go on from there\n  {command}"


def load_model(dual: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """load_state_dict, strictly, and with a plain error that names the first difference."""
    _same(dual.state_dict(), tensors, path)
    dual.load_state_dict(dict(tensors), strict=True)


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> str:
    """A sha256 of names, types, shapes and values in the order of the names, after the header."""
    total = sha256(json.dumps(dict(header), sort_keys=True).encode() if header else b"")
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


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
