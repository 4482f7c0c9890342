"""Masks over time: the requested sparsity at each step, and the share of weights that regrow.

In:   a step, the settings of a rule.
Out:  one class for each word: the sparsity, or the dropped share, of that step.
Not:  no counts of weights (plan/schedule.py), no masks (masking/select.py).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.units import Percent, Range, Time, written
from dcil_dsl.words.word import AT_LEAST_ONE, RunLength, ScoredPath, Word

if TYPE_CHECKING:
    from typing_extensions import Self


class Schedule(Word):
    """`schedule = word(...)`: the sparsity that is asked for, as a function of the step."""

    place: ClassVar[str] = "a schedule"
    proportional: ClassVar[bool] = False  # whether it is a course from 0 to any target

    @abstractmethod
    def sparsity(self, step: int, target: float) -> float:
        """The sparsity asked for at `step`, counted from 0; `target` from `reached` on."""

    @property
    @abstractmethod
    def reached(self) -> int:
        """The first step at which the target is requested in full."""

    @property
    def turns(self) -> tuple[int, ...]:
        """Steps worth showing between the start and `reached`."""
        return ()

    def fault(self, target: Percent) -> tuple[str, str | None] | None:
        """Why the settings have no meaning with a target, and a help line; None if they have."""
        return None

    def fault_in_steps(self) -> tuple[str, str | None] | None:
        """The same of its times, once they are in steps."""
        return None

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

    def in_steps(self, run: RunLength) -> Self:
        grid = self.grid or Time(1, "steps")
        return super().in_steps(run).model_copy(update={"grid": run.steps(grid, least=1)})

    def fault(self, target: Percent) -> tuple[str, str | None] | None:
        if self.initial <= target:
            return None
        start, end = written(self.initial), written(target)
        fact = f"the ramp starts at {start}, above its target of {end}"
        return fact, f"`initial` is at most {end}"

    def fault_in_steps(self) -> tuple[str, str | None] | None:
        if self.reached > self.start:
            return None
        return "the ramp is shorter than one step", "`once(at=...)` prunes at one moment"

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
        return self.between(self.initial.fraction, target, u)

    def between(self, initial: float, target: float, u: float) -> float:
        """The sparsity at the place u of the ramp."""
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

    proportional: ClassVar[bool] = True

    def rise(self, u: float) -> float:
        return 1 - (1 - u) ** 3


class Linear(Ramp):
    """`linear(0ep..75% run)`: rise(u) = u."""

    proportional: ClassVar[bool] = True

    def rise(self, u: float) -> float:
        return u


class ExponentialRamp(Ramp):
    """`exponential(0ep..75% run)`: the density falls by the same factor in equal times.

    1 - s(t) = (1 - initial)^(1 - u) (1 - target)^u
    """

    word: ClassVar[str] = "exponential"

    def rise(self, u: float) -> float:
        return u  # of the logarithm

    def between(self, initial: float, target: float, u: float) -> float:
        density: float = (1 - initial) ** (1 - u) * (1 - target) ** u
        return 1 - density

    def fault(self, target: Percent) -> tuple[str, str | None] | None:
        if target.fraction < 1:
            return super().fault(target)
        return "no factor brings a density to 0", "`cubic(...)` reaches 100%"


class Iterative(Schedule):
    """`iterative(0ep..60% run, rounds=5)`: in each round the same share of what is left is pruned.

        1 - s = (1 - target)^(k / rounds)   from round k on

    The first round begins at the start of the range, the last at its end. Weights are not rewound.
    The rounds of Han et al. 2015, arXiv:1506.02626, section 3.
    """

    positional: ClassVar[int] = 1
    over: Range
    rounds: Annotated[int, Field(ge=2)] = 5

    @property
    def reached(self) -> int:
        return self.over.stop.step

    @property
    def turns(self) -> tuple[int, ...]:
        start, length = self.over.start.step, self.reached - self.over.start.step
        return tuple(start + length * k // (self.rounds - 1) for k in range(self.rounds - 1))

    def sparsity(self, step: int, target: float) -> float:
        if step >= self.reached:
            return target
        done = bisect_right(self.turns, step)
        density: float = (1 - target) ** (done / self.rounds)
        return 1 - density

    def fault_in_steps(self) -> tuple[str, str | None] | None:
        if self.reached - self.over.start.step >= self.rounds - 1:
            return None
        return "the range has fewer steps than rounds", "`once(at=...)` prunes at one moment"

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        return (
            f"{self.rounds} rounds from {moment(self.over.start.step)} to {target} at "
            f"{moment(self.reached)}, each of the same share of what is left"
        )


class Staged(Schedule):
    """`staged(at=[2ep, 4ep, 6ep], stages=[50%, 75%])`: these sparsities from these moments on,
    and the target from the last one on."""

    at: Annotated[tuple[Time, ...], Field(min_length=1)]
    stages: tuple[Percent, ...] = ()

    @property
    def reached(self) -> int:
        return self.at[-1].step

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(time.step for time in self.at[:-1])

    def sparsity(self, step: int, target: float) -> float:
        number = bisect_right([time.step for time in self.at], step)
        if number == len(self.at):
            return target
        return self.stages[number - 1].fraction if number else 0.0

    def fault(self, target: Percent) -> tuple[str, str | None] | None:
        if len(self.at) == len(self.stages) + 1:
            return None
        return (
            f"{count(len(self.at), 'moment')} and {count(len(self.stages), 'stage')}",
            "one stage for each moment but the last, from which the target holds",
        )

    def fault_in_steps(self) -> tuple[str, str | None] | None:
        steps = [time.step for time in self.at]
        return None if steps == sorted(set(steps)) else ("its moments are not in order", None)

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        parts = [
            f"{written(share)} at {moment(time.step)}"
            for share, time in zip(self.stages, self.at, strict=False)
        ]
        return ", ".join(["0%", *parts, f"{target} at {moment(self.reached)}"])


class Cyclic(Schedule):
    """`cyclic(0ep..75% run, cycles=4, initial=0%)`: a cubic rise from `initial` to the target in
    each of equal cycles; at the start of the next one weights come back.

        s(t) = target - (target - initial) (1 - u)^3,   u the place in the cycle

    Srinivas et al. 2022, arXiv:2202.01290, section 3.
    """

    positional: ClassVar[int] = 1
    over: Range
    cycles: Annotated[int, Field(ge=2)] = 4
    initial: Percent = Percent(0.0)

    @property
    def reached(self) -> int:
        return self.over.stop.step

    @property
    def turns(self) -> tuple[int, ...]:
        start, length = self.over.start.step, self.reached - self.over.start.step
        return tuple(start + length * k // self.cycles for k in range(self.cycles))

    def sparsity(self, step: int, target: float) -> float:
        if step >= self.reached:
            return target
        start, initial = self.over.start.step, self.initial.fraction
        if step < start:
            return initial
        u = (step - start) * self.cycles / (self.reached - start) % 1
        return target - (target - initial) * (1 - u) ** 3

    def fault(self, target: Percent) -> tuple[str, str | None] | None:
        if self.initial <= target:
            return None
        start, end = written(self.initial), written(target)
        fact = f"the cycles start at {start}, above their target of {end}"
        return fact, f"`initial` is at most {end}"

    def fault_in_steps(self) -> tuple[str, str | None] | None:
        if self.reached - self.over.start.step >= self.cycles:
            return None
        return "the range has fewer steps than cycles", None

    def summary(self, target: str, moment: Callable[[int], str]) -> str:
        return (
            f"{self.cycles} cubic rises from {100 * self.initial.fraction:.6g}% to {target}, from "
            f"{moment(self.over.start.step)} to {moment(self.reached)}"
        )


class Once(Schedule):
    """`once(at=10ep)`: 0 before `at`, the target from then on."""

    proportional: ClassVar[bool] = True

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

    proportional: ClassVar[bool] = True

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

    def in_steps(self, run: RunLength) -> Self:
        return super().in_steps(run).model_copy(update={"path": self.path or run.deploy})


class GrowAtRandom(Regrow):
    """`random(30%)`: grow anywhere. SET: Mocanu et al. 2018, arXiv:1707.04780."""

    word: ClassVar[str] = "random"
    positional: ClassVar[int] = 1
    where: ClassVar[str] = "at random"
    stop: Time = Time(0.75, "run")
