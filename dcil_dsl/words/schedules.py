"""Masks over time: the requested sparsity at each step, and the share of weights that regrow.

In:   a step, the settings of a rule.
Out:  one class for each word: the sparsity, or the dropped share, of that step.
Not:  no counts of weights (plan/schedule.py), no masks (masking/select.py).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from dcil_dsl.words.units import Percent, Range, Time
from dcil_dsl.words.word import AT_LEAST_ONE, Run, ScoredPath, Word

if TYPE_CHECKING:
    from typing_extensions import Self


class Schedule(Word):
    """`schedule = word(...)`: the sparsity that is asked for, as a function of the step."""

    place: ClassVar[str] = "a schedule"

    @abstractmethod
    def sparsity(self, step: int, target: float) -> float:
        """The sparsity asked for at `step`, counted from 0; `target` from `reached` on."""

    @property
    @abstractmethod
    def reached(self) -> int:
        """The first step at which the target itself is asked for."""

    @property
    def turns(self) -> tuple[int, ...]:
        """Steps worth showing between the start and `reached`."""
        return ()

    @abstractmethod
    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        """The schedule in the text of a plan; `moment` writes a step."""


class Ramp(Schedule):
    """A rise from `initial` to the target over a range of steps.

        s(t) = initial + (target - initial) * rise(u),   u from 0 to 1 through `over`

    grid  the target moves only at multiples of this many steps
    """

    positional: ClassVar[int] = 1
    over: Range
    initial: Percent = Percent(0.0)
    grid: Annotated[Time | None, AT_LEAST_ONE] = None

    @abstractmethod
    def rise(self, u: float) -> float:
        """0 at u = 0, 1 at u = 1."""

    def in_steps(self, run: Run) -> Self:
        grid = self.grid or Time(1, "steps")
        return super().in_steps(run).model_copy(update={"grid": run.steps(grid, least=1)})

    @property
    def start(self) -> int:
        return self.over.start.step

    @property
    def reached(self) -> int:
        return self.over.stop.step

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(self.start + (self.reached - self.start) * i // 4 for i in range(4))

    def sparsity(self, step: int, target: float) -> float:
        if step >= self.reached:
            return target
        # The grid moves the clock, not the curve: with `grid=1ep` every step of an epoch asks
        # for what its first step asked for.
        grid = 1 if self.grid is None else self.grid.step
        step = max(step // grid * grid, self.start)
        u = (step - self.start) / (self.reached - self.start)
        initial = self.initial.fraction
        return initial + (target - initial) * self.rise(u)

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        grid = 1 if self.grid is None else self.grid.step
        stairs = f", moving every {grid:,} steps" if grid > 1 else ""
        return (
            f"{self.called} from {100 * self.initial.fraction:.6g}% at {moment(self.start)} to "
            f"{target} at {moment(self.reached)}{stairs}"
        )


class Cubic(Ramp):
    """`cubic(0ep..75% run)`: rise(u) = 1 - (1 - u)^3. Zhu & Gupta 2017, arXiv:1710.01878."""

    def rise(self, u: float) -> float:
        return 1 - (1 - u) ** 3


class Linear(Ramp):
    """`linear(0ep..75% run)`: rise(u) = u."""

    def rise(self, u: float) -> float:
        return u


class Once(Schedule):
    """`once(at=10ep)`: 0 before `at`, the target from then on."""

    at: Time

    @property
    def reached(self) -> int:
        return self.at.step

    def sparsity(self, step: int, target: float) -> float:
        return target if step >= self.reached else 0.0

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        return f"0% until {moment(self.reached)}, then {target}"


class Constant(Schedule):
    """`constant()`: the target from the first step on."""

    @property
    def reached(self) -> int:
        return 0

    def sparsity(self, step: int, target: float) -> float:
        return target

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        return f"{target} from the first step on"


class Regrow(Word):
    """`regrow = word(30%)`: at each refresh drop a share of the kept weights, grow as many.

    share  of the kept weights at step 0; it falls to 0 at `stop` by half a cosine
    where  where weights grow, for the text of a plan
    """

    place: ClassVar[str] = "a way to grow"
    where: ClassVar[str] = ""
    share: Percent
    if TYPE_CHECKING:  # the last setting of each word

        @property
        def stop(self) -> Time:
            """When the share is 0."""

    @property
    def gradient_path(self) -> str | None:
        """The path whose last gradient says where to grow; None: chance says."""
        return getattr(self, "path", None)

    def share_at(self, step: int) -> float:
        """The share of the kept weights that is dropped at `step`."""
        u = min(step / max(self.stop.step, 1), 1.0)
        return self.share.fraction / 2 * (1 + math.cos(math.pi * u))


class GrowByGradient(Regrow):
    """`gradient(30%)`: grow where the gradient is largest, that of the deployed path or,
    `gradient(30%, dense)`, of another. RigL: Evci et al. 2020, arXiv:1911.11134.
    """

    word: ClassVar[str] = "gradient"
    positional: ClassVar[int] = 2
    where: ClassVar[str] = "where the last gradient is largest"
    path: ScoredPath = None
    stop: Time = Time(0.75, "run")

    def in_steps(self, run: Run) -> Self:
        return super().in_steps(run).model_copy(update={"path": self.path or run.deploy})


class GrowAtRandom(Regrow):
    """`random(30%)`: grow anywhere. SET: Mocanu et al. 2018, arXiv:1707.04780."""

    word: ClassVar[str] = "random"
    positional: ClassVar[int] = 1
    where: ClassVar[str] = "at random"
    stop: Time = Time(0.75, "run")
