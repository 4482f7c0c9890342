"""Quantities with units, as the recipe means them.

In:   numbers and their units, read by build.py.
Out:  Percent, Time, Range, Ratio; their arithmetic refuses to mix units.
Not:  no text and no spans; a wrong mix raises UnitError, which link.py turns into E207.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class UnitError(ValueError):
    """Two quantities that cannot be combined; the message says which."""


@dataclass(frozen=True, order=True)
class Percent:
    """A share of something; `fraction` is 0.9 for 90%."""

    fraction: float


@dataclass(frozen=True)
class Ratio:
    """`2:4`, read "keep 2 of every 4"."""

    keep: int
    of: int


@dataclass(frozen=True)
class Time:
    """A moment or a length of the run, counted in optimiser steps once resolved.

    unit "epochs" | "steps" | "run"; `value` is 0.75 for `75% run`.
    """

    value: float
    unit: Literal["epochs", "steps", "run"]

    def to_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """The step this moment falls on, rounded to the nearest."""
        scale = {"epochs": steps_per_epoch, "steps": 1, "run": num_steps}[self.unit]
        return int(self.value * scale + 0.5)


@dataclass(frozen=True)
class Range:
    """`start..stop`, both of one kind of quantity."""

    start: object
    stop: object
