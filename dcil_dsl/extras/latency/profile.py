"""How fast a network runs at several sparsities, as measured: the speed profile.

In:   what job.py measured; or the JSON file that it became.
Out:  SpeedProfile; the sparsity that a time needs.
Not:  nothing is measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from dcil_dsl.plan.group import PlanRecord

Seconds = Annotated[float, Field(gt=0)]


class SpeedProfile(PlanRecord):
    """The median time of one run of the network, at each sparsity of all its layers together.

    model, machine  as they were named when it was measured; date: when
    layers   the weights that were pruned, and how many numbers each has
    levels   the sparsities, rising from 0
    seconds  in the sparse engine, one for each level
    dense    in the dense engines that were installed
    """

    format: Literal[1] = 1
    kind: Literal["speed"] = "speed"
    model: str
    machine: str
    date: str
    versions: dict[str, str] = {}
    engine: str
    batch: PositiveInt
    threads: PositiveInt
    layers: dict[str, PositiveInt]
    levels: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    seconds: tuple[Seconds, ...]
    dense: dict[str, Seconds]

    @model_validator(mode="after")
    def _check(self) -> SpeedProfile:
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or not rising or self.levels[0] != 0:
            raise ValueError("its levels are not rising sparsities from 0 on")
        if len(self.seconds) != len(self.levels) or not self.dense or not self.layers:
            raise ValueError("it has not one time for each level, a dense time and layers")
        return self

    @property
    def fastest_dense(self) -> float:
        """The time of the fastest dense engine."""
        return min(self.dense.values())

    @property
    def where(self) -> str:
        """What the times were measured on."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.machine}, batch {self.batch}, {threads}, {self.date[:10]}"

    def curve(self) -> tuple[float, ...]:
        """The times, never rising: where noise made a sparser network slower, the slower time
        counts for the less sparse ones too, so that none is promised too fast."""
        return tuple(max(self.seconds[at:]) for at in range(len(self.seconds)))

    def sparsity_for(self, seconds: float) -> float | None:
        """The least sparsity that is as fast, with straight lines between the levels; None where
        no measured level is."""
        curve = self.curve()
        if seconds >= curve[0]:
            return 0.0
        for at in range(1, len(curve)):
            slow, fast = curve[at - 1], curve[at]
            if fast <= seconds:
                low, high = self.levels[at - 1], self.levels[at]
                return low + (high - low) * (slow - seconds) / (slow - fast)
        return None

    def to_json(self) -> str:
        """JSON, to lie next to recipes."""
        return self.model_dump_json(indent=1) + "\n"


class SpeedError(Exception):
    """A profile that cannot be read, with the reason in a few words."""


def read_speed(path: Path) -> SpeedProfile:
    """The profile in a file. Raises SpeedError."""
    try:
        return SpeedProfile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpeedError("there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpeedError(getattr(error, "strerror", None) or "it is not text") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpeedError(f"{where}: {first['msg']}" if where else first["msg"]) from None
