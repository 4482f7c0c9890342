"""Rows of zeros that could not leave the network, and why.

In:   Dependencies, the layers' readings, and what was removed.
Out:  Stay: for each layer how many of its rows are zero and stay, by reason.
Not:  nothing is decided here; dead.py has decided.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from dcil_dsl.extras.compact.dead_channels import Reading, Removal
from dcil_dsl.extras.compact.dependencies import Dependencies
from dcil_dsl.extras.compact.graph_facts import told


@dataclass(frozen=True)
class Stay:
    """`count` rows of `weight` are zero and stay."""

    weight: str
    count: int
    reason: str


def find_stays(found: Dependencies, given: list[Reading], removal: Removal) -> tuple[Stay, ...]:
    """By layer, in execution order, the commonest reason first."""
    why: dict[int, str] = {}
    for reading in given:  # the later reasons give way to those that stand already
        writes = reading.read.rows[reading.matters.any(2)]
        place = told(reading.read.weighing.node, found.model)
        _note(why, writes, f"{place} writes the same channel")
    for reading in given:
        place = told(reading.read.weighing.node, found.model)
        read = (reading.matters & ~removal.gone[reading.read.rows][:, :, None]).any(1)
        held, lost = read & ~reading.can_take, reading.constant.isnan()
        _note(why, reading.read.columns[held & lost], f"{place} reads it where it is not constant")
        _note(
            why, reading.read.columns[held & ~lost], f"nothing at {place} could take its constant"
        )
    why |= found.fixed | removal.reasons
    stays = []
    for reading in given:
        zero = ~reading.matters.any(2) & ~removal.gone[reading.read.rows]
        channels = reading.read.rows[zero].tolist()
        reasons = Counter(why.get(c, "what it is joined with stays") for c in channels)
        weight = reading.read.weighing.weight
        stays += [Stay(weight, count, reason) for reason, count in reasons.most_common()]
    return tuple(stays)


def _note(why: dict[int, str], channels: Tensor, reason: str) -> None:
    for channel in channels.unique().tolist():
        why.setdefault(channel, reason)
