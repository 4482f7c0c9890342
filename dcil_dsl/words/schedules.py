"""Sparsity over time: what part of the target is asked for at a step.

In:   a step, the target.
Out:  one class for each word: the sparsity that is asked for at that step.
Not:  no counts of weights (plan/schedule.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from dcil_dsl.words.units import Percent, Range, Time
from dcil_dsl.words.word import AT_LEAST_ONE, Run, Word

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
