"""Filters that are tied across weights: sums over them, and masks for all of them.

In:   a number or a boolean for each filter of each weight; which filters are one unit.
Out:  one number for each unit; a boolean for each filter.
Not:  which units stay (select.py).

Filters are gathered by index and added in one order, so that a device adds them in that order at
each call. The indices are made once for each device, because the host waits for the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class TiedLike(Protocol):
    @property
    def parameter(self) -> str: ...

    def listed(self) -> list[int]: ...


class TieLike(Protocol):
    @property
    def num_units(self) -> int: ...

    @property
    def parts(self) -> Sequence[TiedLike]: ...


class Places(NamedTuple):
    """Where the filters of units lie.

    of_units    for each tie, by the weight's place, (units, filters of a unit)
    of_weights  for each weight the unit of each filter, counted through all ties
    """

    of_units: list[list[tuple[int, Tensor]]]
    of_weights: list[Tensor]


@lru_cache(maxsize=64)
def places(ties: tuple[TieLike, ...], parameters: tuple[str, ...], device: torch.device) -> Places:
    """The indices of ties on a device; each filter of each weight is in one unit."""
    place = {name: i for i, name in enumerate(parameters)}
    of_units: list[list[tuple[int, Tensor]]] = []
    unit_of: list[dict[int, int]] = [{} for _ in parameters]
    start = 0
    for tie in ties:
        own = []
        for part in tie.parts:
            filters = torch.tensor(part.listed()).view(tie.num_units, -1)
            own.append((place[part.parameter], filters.to(device)))
            for unit, row in enumerate(filters.tolist(), start):
                unit_of[place[part.parameter]].update(dict.fromkeys(row, unit))
        of_units.append(own)
        start += tie.num_units
    of_weights = [
        torch.tensor([units[i] for i in range(len(units))], dtype=torch.int64).to(device)
        for units in unit_of
    ]
    return Places(of_units, of_weights)


def sum_ties(of_filters: Sequence[Tensor], at: Places) -> list[Tensor]:
    """The sum over each unit's filters, (units,) for each tie."""
    return [
        torch.stack([of_filters[i][filters].sum(1) for i, filters in own]).sum(0)
        for own in at.of_units
    ]


def spread_ties(kept: Sequence[Tensor], at: Places) -> list[Tensor]:
    """For each weight one boolean per filter, from one boolean per unit of each tie."""
    units = torch.cat(list(kept))
    return [units[own] for own in at.of_weights]
