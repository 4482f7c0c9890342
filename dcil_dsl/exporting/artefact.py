"""The exported file: plain tensors under the original's names, and what they promise.

In:   a collapsed model and the Plan it was trained by; or a file of ours or of anybody else.
Out:  sparse.safetensors or a .pth of tensors, written atomically; Artefact when read back.
Not:  no judgement (verify.py), no pickled objects: safetensors, or torch.load(weights_only=True).

The header of a .safetensors holds JSON under the key "dcil": who the file is, the counts of
weights that the plan lets it keep, and a digest of its tensors. A .pth is a bare state dict, so
that it loads anywhere in one line; it promises nothing by itself.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.format_1 import upgrade_origin
from dcil_dsl.plan.group import Share
from dcil_dsl.plan.plan import Budgeted, Model, Plan, Size, first_fault
from dcil_dsl.plan.schedule import (
    bounds_at,
    ceilings_at,
    keeps_at,
    last_refresh,
    sparsity_at,
)
from dcil_dsl.training.checkpoint import digest
from dcil_dsl.training.metrics import masks_step
from dcil_dsl.training.run import cannot_write, write_atomically

FORMATS = ("safetensors", "pth")


class Promise(Budgeted):
    """What one group of the plan allows at one step.

    keeps   the most that is not zero, in what the budget counts: one number for all layers
            together if the members share one budget, else one a layer
    asked   the sparsity that the schedule asks for, a fraction of what the budget counts

    Ceilings are those at this step, and so are the bounds'.
    """

    asked: Share
    keeps: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _check(self) -> Promise:
        a_member = ("ceilings", "costs", *(() if self.one_budget else ("keeps",)))
        self.check_members(("num_weights", "cuts"), a_member)
        if self.one_budget and len(self.keeps) != 1:
            raise ValueError("one budget keeps one number")
        return self

    def promised(self) -> dict[str, object]:
        """What two promises share exactly if they promise the same: the target as it is at the
        end of the run is no part of it, and files of format 1 do not have it."""
        target = self.target.called, self.pattern
        return self.model_dump(exclude={"target"}) | {"target": target}


class Origin(BaseModel):
    """Where a file comes from and what it promises. `step`: updates done when it was written.

    sizes  the inputs that the network was trained on, as Plan.sizes has them
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    recipe: str
    sha256: str
    model: Model
    data: str | None
    path: str
    step: NonNegativeInt
    promises: tuple[Promise, ...]
    sizes: dict[str, Size] = {}
    digest: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("format") == 1:
            return upgrade_origin(values)
        return values


@dataclass(frozen=True)
class Artefact:
    """A file read back. origin None: the file says nothing about itself."""

    file: Path
    tensors: dict[str, Tensor]
    origin: Origin | None


def promises_at(plan: Plan, num_done: int) -> tuple[Promise, ...]:
    """What the deployed path has to hold after `num_done` updates; nothing if it prunes nothing."""
    if not plan.prunes:
        return ()
    step = masks_step(num_done)
    return tuple(
        Promise(
            rule=group.rule,
            target=group.target,
            asked=sparsity_at(group, last_refresh(group, step)),
            parameters=group.parameters,
            num_weights=group.num_weights,
            keeps=keeps_at(group, last_refresh(group, step)),
            of=group.of,
            granularity=group.granularity,
            cuts=group.cuts,
            spans=group.spans,
            ties=group.ties,
            costs=group.costs,
            ceilings=ceilings_at(group, last_refresh(group, step)) if group.ceilings else (),
            bounds=bounds_at(group, last_refresh(group, step)),
        )
        for group in plan.groups
    )


def origin_of(plan: Plan, num_done: int) -> Origin:
    """What a file exported after `num_done` updates says about itself."""
    return Origin(
        recipe=plan.recipe.name,
        sha256=plan.recipe.sha256,
        model=plan.model,
        data=plan.data.name,
        path=plan.deploy,
        step=num_done,
        promises=promises_at(plan, num_done),
        sizes=plan.sizes,
    )


def write_artefact(model: nn.Module, file: Path, origin: Origin) -> None:
    """Write the model's state dict to `file`, whose suffix says the format.

    InputError for another suffix and for a disk that is full or cannot be written.
    """
    if file.suffix[1:] not in FORMATS:
        raise InputError(
            f"{file}: there is no format `{file.suffix[1:]}`",
            help=f"the formats are {', '.join(FORMATS)}",
        )
    # Copies: tied tensors are written once for each of their names, so that a strict load finds
    # them all, and a channels_last weight lies row by row.
    tensors = {
        name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()
    }
    origin = origin.model_copy(update={"digest": digest(tensors)})

    def write(draft: Path) -> None:
        try:
            if file.suffix == ".pth":
                torch.save(tensors, draft)
            else:
                save_file(tensors, draft, {"format": "pt", "dcil": origin.model_dump_json()})
                _order_metadata(draft)
        except (SafetensorError, RuntimeError) as error:
            raise cannot_write(file, error) from None

    write_atomically(file, write)


def _order_metadata(file: Path) -> None:
    """Sort the keys of the header's metadata, which safetensors writes in a random order.

    Two runs with the same result then have the same file, byte for byte.
    """
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same content, written as compactly as safetensors does"
        opened.seek(8)
        opened.write(text.ljust(size))  # spaces at the end are part of the format


def read_artefact(file: Path) -> Artefact:
    """Read an exported file. InputError where it is missing, damaged, or not tensors by name."""
    if not file.is_file():
        raise InputError(f"there is no file {file}", help=f"looked at {file.absolute()}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in (".pth", ".pt"):
        return Artefact(file, _read_pth(file), None)
    raise InputError(f"{file} is not an exported file", help="give a .safetensors or a .pth")


def _read_safetensors(file: Path) -> Artefact:
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if "dcil" not in header:
        return Artefact(file, tensors, None)
    try:
        return Artefact(file, tensors, Origin.model_validate_json(header["dcil"]))
    except ValidationError as error:
        raise InputError(
            f"the header of {file} is not one that this version reads",
            help=f"the first fault: {first_fault(error)}",
        ) from None


def _read_pth(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} is damaged, or holds more than tensors, which could run code when loaded"
        ) from None
    except Exception as error:  # the format's own errors, of many types
        fact = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read: {type(error).__name__}: {fact}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in loaded.items())
    ):
        raise InputError(f"{file} is not a state dict of tensors")
    return loaded
