"""Whether all ranks were started for the same run, asked before the first of them writes.

In:   on each rank: its plan, its options, its model in words, what its data hold.
Out:  an InputError on all ranks that says what differs, with both values.
Not:  what may differ between machines: where the data lie, how many workers read them, and which
      device of its type a rank has. Nothing is corrected: no rank takes what another was given.

Ranks that train different things exchange tensors all the same: they train a mixture, wait for
each other, or are aborted by a collective whose sizes do not match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import (
    listed,
    science_of,
    text_differences,
    value_differences,
)
from dcil_dsl.training.machine import Options

NAMES = {"anyway": "--resume-anyway"}
APART = ("device", "ranks", "channels_last")  # of Options; the last follows from the plan


def check_alike(
    plan: Plan, options: Options, model: str, data: Mapping[str, str], more: Mapping[str, object]
) -> None:
    """InputError on all ranks where one was started otherwise than the first.

    more  other options, by their names, of which the result depends
    """
    ranks = options.ranks
    if ranks.count == 1:
        return
    said = {
        "options": _spelled(options) | dict(more),
        "plan": science_of(plan),
        "model": model,
        "data": dict(data),
    }
    found = ranks.find_other(json.dumps(said, sort_keys=True))
    if found is None:
        return
    others, first, other = found[0], json.loads(found[1]), json.loads(found[2])
    places = ("on rank 0", f"on rank {others[0]}")
    lines = []
    for part in ("options", "plan", "data"):
        lines += listed(value_differences(first[part], other[part], *places))
    text = text_differences(first["model"], other["model"])
    lines += listed([f"model {line[0]} {line[2:]}" for line in text])
    which = "ranks " + ", ".join(map(str, others)) if others[1:] else f"rank {others[0]}"
    raise InputError(
        f"the processes of this job were not started alike: {which} and rank 0 differ",
        help="\n".join([*lines, "give every process the same command"]),
    )


def _spelled(options: Options) -> dict[str, object]:
    """As on the command line, where most have the names that they have here."""
    values = {name: value for name, value in vars(options).items() if name not in APART}
    spelled = {NAMES.get(n, "--" + n.replace("_", "-")): value for n, value in values.items()}
    return spelled | {"--device": torch.device(options.device).type}
