"""The Plan: what is pruned, by how much, when, and who learns from whom.

In:   the fields (records.py), which resolve.py fills from a recipe and a traced model.
Out:  compiler/, training/ and exporting/ read it and nothing of the language; it goes to JSON
      and back unchanged, and is stored in every run folder and checkpoint; it prints itself.
Not:  no tensors, no modules, no units but steps, counts of weights and fractions.
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import ValidationError

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.html import preformatted
from dcil_dsl.plan.group import (
    Bound,
    Budgeted,
    BufferedScore,
    Cut,
    FilterFloor,
    Group,
    PlanRecord,
    Stage,
    Stretch,
    Tie,
    Tied,
)
from dcil_dsl.plan.records import (
    About,
    Data,
    Expectation,
    Model,
    OpaqueModule,
    Path,
    Phase,
    PlanFields,
    PlanLayer,
    Private,
    Shares,
    Size,
    TeacherPath,
    TrainPlan,
    Unprunable,
    WeightedLoss,
    Window,
)
from dcil_dsl.plan.show import show_plan
from dcil_dsl.plan.text import page_of
from dcil_dsl.words.weight_groups import divided

__all__ = [
    "About",
    "Bound",
    "Budgeted",
    "BufferedScore",
    "Cut",
    "Data",
    "Expectation",
    "FilterFloor",
    "first_fault",
    "Group",
    "Model",
    "OpaqueModule",
    "Path",
    "Phase",
    "Plan",
    "PlanFields",
    "PlanLayer",
    "PlanRecord",
    "Private",
    "Shares",
    "Size",
    "Stage",
    "Stretch",
    "TeacherPath",
    "Tie",
    "Tied",
    "TrainPlan",
    "Unprunable",
    "WeightedLoss",
    "Window",
]


class Plan(PlanFields):
    """The fields of PlanFields, with what a person and a training loop ask of them."""

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the output of to_json or `dcil plan --json`; ValidationError if it is not a plan."""
        return cls.model_validate_json(text)

    def make_optimizer(self, dual: Any) -> Any:
        """The recipe's torch optimizer over every weight of a Dual that learns.

        Its `lr` is that of the first step; lr_at, or Pruner.make_scheduler, says the later ones.
        """
        parts = divided(self.train.groups, dual.trainable(), self.original_name)
        optimizer = self.train.optimizer.make(parts)
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(0) * group["lr_scale"]
        return optimizer

    def original_name(self, parameter: str) -> str:
        """The name in the model of a parameter of the dual graph: of a twin, the original's."""
        for entry in self.privates:
            for path in self.paths:
                twin = f"{entry.module}__{path.name}."
                if parameter.startswith(twin):
                    return f"{entry.module}.{parameter.removeprefix(twin)}"
        return parameter

    def __repr__(self) -> str:
        pruned = sum(len(group.parameters) for group in self.groups)
        return (
            f"<Plan {self.recipe.name}: {pruned} of {count(len(self.layers), 'layer')} pruned, "
            f"{count(self.num_steps, 'step')}>"
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """What `dcil plan` prints, for a notebook."""
        return preformatted(show_plan(self))

    def show(self) -> None:
        """Print what `dcil plan` prints."""
        print(show_plan(self, page_of(sys.stdout)), end="")


def first_fault(error: ValidationError) -> str:
    """The place of the first fault in a file, and the fault: "groups.0.refresh: ..."."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
