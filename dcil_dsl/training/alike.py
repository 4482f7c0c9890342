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

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.differences import (
    listed,
    science_of,
    text_differences,
    value_differences,
)
from dcil_dsl.training.machine import Options


def check_alike(plan: Plan, options: Options, model: str, data: Mapping[str, str]) -> None:
    """InputError on all ranks where one was started otherwise than the first."""
    ranks = options.ranks
    if ranks.count == 1:
        return
    said = {
        "options": options.compared(),
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
