"""What an exported network is, whatever its format: tensors, their origin, and its promises.

In:   a Plan and the number of updates done; a network to write.
Out:  Origin, as the header of a file holds it; Deployed, to be written; Artefact, read back.
Not:  no format (exporters.py, files.py), no judgement (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    model_validator,
)
from torch import Tensor, nn

from dcil_dsl.plan.format_1 import upgrade_origin
from dcil_dsl.plan.group import Share, Stage, check_before
from dcil_dsl.plan.plan import Budgeted, Group, Model, Plan, Size
from dcil_dsl.plan.schedule import (
    bounds_at,
    ceilings_at,
    keeps_at,
    last_refresh,
    sparsity_at,
)
from dcil_dsl.plan.text import percent
from dcil_dsl.training.sparsity import masks_step


class Promise(Budgeted):
    """The zeros that one group of the plan guarantees at one step.

    keeps   the largest nonzero count, in what the budget counts: one number for all layers
            together if the members share one budget, else one per layer
    asked   the requested sparsity, a fraction of what the budget counts

    before  the promise of the whole units that are pruned first, of the same weights

    Ceilings and bounds are those at this step.
    """

    asked: Share
    keeps: tuple[NonNegativeInt, ...]
    before: Promise | None = None

    @model_validator(mode="after")
    def _check(self) -> Promise:
        a_member = ("ceilings", "costs", *(() if self.one_budget else ("keeps",)))
        self.check_members(("num_weights", "cuts", "filter_floors"), a_member)
        if self.one_budget and len(self.keeps) != 1:
            raise ValueError("one budget keeps one number")
        if self.before is not None:
            check_before(self, self.before)
        return self

    def promised(self) -> dict[str, object]:
        """What two promises share exactly if they promise the same: the target as it is at the
        end of the run is not part of it, and files of format 1 do not have it."""
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
class Deployed:
    """A network to export.

    origin  the metadata of its file; None: unknown, as of a bare state dict
    plan    of its run; None: unknown
    source  the run or the file that it was read from, for error messages
    """

    network: nn.Module
    origin: Origin | None
    plan: Plan | None = None
    source: str = "the network"

    def tensors(self) -> dict[str, Tensor]:
        """The state dict on the CPU, copied.

        A tied tensor has an entry under each of its names, so that a strict load finds all of them.
        A channels_last weight becomes contiguous.
        """
        state = self.network.state_dict()
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


@dataclass(frozen=True)
class Artefact:
    """An exported file or folder, read back.

    origin    None: the file has no metadata
    exact     False: the tensors differ from those that the run deploys, the outputs do not
    complete  False: tensors that became part of others are missing, and others may be there
    """

    file: Path
    tensors: dict[str, Tensor]
    origin: Origin | None
    exact: bool = True
    complete: bool = True


def promises_at(plan: Plan, num_done: int) -> tuple[Promise, ...]:
    """The promises of the deployed path after `num_done` updates; none if it prunes nothing."""
    if not plan.prunes:
        return ()
    step = masks_step(num_done)
    return tuple(_promise(group, last_refresh(group, step)) for group in plan.groups)


def _promise(group: Stage, step: int) -> Promise:
    """That of a group whose masks were last made at `step`."""
    before = group.before if isinstance(group, Group) else None
    return Promise(
        rule=group.rule,
        target=group.target,
        asked=sparsity_at(group, step),
        parameters=group.parameters,
        num_weights=group.num_weights,
        keeps=keeps_at(group, step),
        of=group.of,
        granularity=group.granularity,
        cuts=group.cuts,
        spans=group.spans,
        ties=group.ties,
        costs=group.costs,
        ceilings=ceilings_at(group, step) if group.ceilings else (),
        bounds=bounds_at(group, step),
        filter_floors=group.filter_floors,
        before=None if before is None else _promise(before, step),
    )


def schedule_notes(promises: Iterable[Promise], step: int, plan: Plan | None) -> list[str]:
    """A line for each rule whose schedule asks less after `step` updates than at its end.

    plan  of the run; None: unknown, as of a file alone
    """
    notes = []
    whole = {} if plan is None else {p.rule: p.asked for p in promises_at(plan, plan.num_steps)}
    for one in promises:
        if one.target.is_result:
            continue
        end, of = whole.get(one.rule), ""
        if plan is not None:
            of = f" of {plan.num_steps:,}"
        elif one.before is None and one.pattern is None:
            end = one.target.sparsity.fraction
        if end is not None and end - one.asked > 1e-9:
            notes.append(
                f"{one.rule}: {percent(round(one.asked, 6))} is asked as scheduled at step "
                f"{step:,}{of}; the recipe asks {percent(round(end, 6))}"
            )
    return notes


def origin_of(plan: Plan, num_done: int) -> Origin:
    """The metadata of a file exported after `num_done` updates."""
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
