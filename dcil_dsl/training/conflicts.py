"""Which options the machine and the recipe allow.

In:   Options; a plan.
Out:  InputError where one leaves no room for another, before anything is written.
Not:  what two options forbid each other, which options.py says with the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.plan.cost import left_out
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.machine import REDUCE_OVERHEAD, Options, precision_of

# Settings of Train that make a step of one batch, from gradients that no scaler has scaled.
OWN_STEPS = ("integrator", "balance")


@dataclass(frozen=True)
class Conflict:
    """Options that do not go, all together, with a part of a recipe.

    options  fields of RunOptions
    part     the part of the plan, as the recipe writes it; None where the plan has none
    why      one clause
    """

    options: tuple[str, ...]
    part: Callable[[Plan], str | None]
    why: str

    def check(self, plan: Plan, options: Options) -> None:
        given = options.given()
        if not all(name in given for name in self.options) or (part := self.part(plan)) is None:
            return
        names = " and ".join(options.spelled(name) for name in self.options)
        raise InputError(
            f"{part} does not go with {names}: {self.why}",
            help=f"leave one of the {'two' if len(self.options) == 1 else 'three'} out",
        )


def check_machine_allows(options: Options) -> None:
    """InputError for what the machine does not allow."""
    if options.compile_mode != REDUCE_OVERHEAD:
        return
    spelled = options.spelled("compile_mode")
    if torch.device(options.device).type != "cuda":
        raise InputError(
            f"{spelled} needs a CUDA device, and the device is {options.device}",
            help="leave it out",
        )
    if options.ranks.count > 1:
        raise InputError(
            f"{spelled} does not support several processes ({options.ranks.count} are running): "
            "a replay would overwrite gradients that the other processes still read",
            help="leave it out",
        )


def check_plan_allows(plan: Plan, options: Options) -> None:
    """InputError for what the recipe does not allow."""
    for conflict in CONFLICTS:
        conflict.check(plan, options)
    train, precision = plan.train, precision_of(plan, options)
    unscaled = next((n for n in ("average", "mirror") if getattr(train, n) is not None), None)
    if unscaled is not None and precision == "fp16":
        raise InputError(
            f"`{unscaled}` of the recipe's `train` does not go with fp16",
            help="--precision bf16 scales no gradient",
        )
    word = _own_step(plan)
    if word == "balance" and options.ranks.count > 1:
        raise InputError(
            f"`balance` of the recipe's `train` does not support several processes "
            f"({options.ranks.count} are running)",
            help="run it without torchrun",
        )
    if word is not None and (precision == "fp16" or train.accumulate > 1):
        raise InputError(
            f"`{word}` of the recipe's `train` goes with neither fp16 nor `accumulate`",
            help="--precision bf16 scales no gradient",
        )


def _own_step(plan: Plan) -> str | None:
    return next((name for name in OWN_STEPS if getattr(plan.train, name) is not None), None)


def _of_train(word: str | None) -> str | None:
    return None if word is None else f"`{word}` of the recipe's `train`"


def _kept_path(plan: Plan) -> str | None:
    path = next((path.name for path in plan.paths if path.compute == "kept"), None)
    if path is None or not left_out(plan.groups, plan.layers):
        return None
    return f"`compute = kept` of path `{path}`"


def _synced_norms(plan: Plan) -> str | None:
    return _of_train("sync_norms" if plan.train.sync_norms else None)


def _kept_gradients(plan: Plan) -> str | None:
    return _of_train(_own_step(plan) or ("accumulate" if plan.train.accumulate > 1 else None))


def _foreign_integrator(plan: Plan) -> str | None:
    word = plan.train.integrator
    return f"`{word.called}`" if word is not None and word.origin is not None else None


def _mirror(plan: Plan) -> str | None:
    return _of_train("mirror" if plan.train.mirror is not None else None)


def _best(plan: Plan) -> str | None:
    return _of_train("checkpoint = best" if plan.train.checkpoint == "best" else None)


def _teacher(plan: Plan) -> str | None:
    return next((f"the teacher `{teacher.name}`" for teacher in plan.teachers), None)


CONFLICTS = (
    Conflict(("shard",), _teacher, "it would lie whole on every process"),
    Conflict(("shard",), _best, "the checkpoint is in parts"),
    Conflict(("shard",), _mirror, "it needs whole weights"),
    Conflict(("compile",), _kept_path, "the layers change their sizes with the masks"),
    # Two ranks were seen to wait for each other without end.
    Conflict(("compile", "shard"), _synced_norms, "the processes would wait for each other"),
    # A replay writes the next gradients in the same place.
    Conflict(("compile_mode",), _kept_gradients, "its gradients must outlive a replay"),
    Conflict(("shard",), _foreign_integrator, "it needs whole gradients"),
)
