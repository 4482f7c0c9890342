"""Which ways of making a step go together, and with what a plan asks of a step.

In:   Options; a plan.
Out:  InputError where one leaves no room for another, before anything is written.
Not:  no ways; each file that makes one says how.
"""

from __future__ import annotations

import torch

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.cost import left_out
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.machine import (
    COMPILE_MODES,
    OWN_STEPS,
    REDUCE_OVERHEAD,
    Options,
    check_own_steps,
)

REPLAYED = f"--compile-mode {REDUCE_OVERHEAD}"


def check_ways(options: Options) -> None:
    """What can be said without a plan."""
    if options.checkpoint_activations and options.compile:
        raise InputError(
            "--checkpoint-activations does not go with --compile", help="leave one of them out"
        )
    if options.compile_mode not in COMPILE_MODES:
        raise InputError(
            f"there is no --compile-mode {options.compile_mode}", help=" or ".join(COMPILE_MODES)
        )
    if options.compile_mode != REDUCE_OVERHEAD:
        return
    if not options.compile:
        raise InputError(f"{REPLAYED} replays what --compile has made", help="add --compile")
    if torch.device(options.device).type != "cuda":
        raise InputError(
            f"{REPLAYED}: the device is {options.device}, and only a CUDA device has graphs",
            help="leave it out",
        )
    if options.ranks.count > 1:
        raise InputError(
            f"{REPLAYED} is for one process, and there are {options.ranks.count}: gradients "
            "that wait for the other processes would be overwritten",
            help="leave it out",
        )


def check_plan_ways(plan: Plan, options: Options) -> None:
    """What a plan asks that such steps do not give."""
    check_own_steps(plan, options)
    path = next((path.name for path in plan.paths if path.compute == "kept"), None)
    if options.compile and path is not None and left_out(plan.groups, plan.layers):
        raise InputError(
            f"`compute = kept` of path `{path}` does not go with --compile: the layers change "
            "their sizes with the masks",
            help="leave one of the two out",
        )
    if options.compile and options.shard and plan.train.sync_norms:
        # Two ranks were seen to wait for each other without end.
        raise InputError(
            "`sync_norms` of the recipe's `train` does not go with --compile and --shard together",
            help="leave one of the three out",
        )
    # Both keep gradients over a replay, which writes the next ones in the same place.
    kept = [word for word in OWN_STEPS if getattr(plan.train, word) is not None]
    kept += ["accumulate"] * (plan.train.accumulate > 1)
    if options.compile_mode == REDUCE_OVERHEAD and kept:
        raise InputError(
            f"{REPLAYED} does not go with `{kept[0]}` of the recipe's `train`: its "
            "gradients outlive a replay",
            help="leave one of the two out",
        )
