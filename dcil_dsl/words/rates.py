"""The learning rate as a function of the step.

In:   the optimizer's lr, a step, the length of the run.
Out:  one class for each word: the rate of that step.
Not:  no state: a rate is a function of the step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from typing import TYPE_CHECKING, ClassVar

from dcil_dsl.words.units import Time
from dcil_dsl.words.word import Factor, FactorOrZero, Run, Word

if TYPE_CHECKING:
    from typing_extensions import Self


class Rate(Word):
    """`lr = word(...)` of `train`: the optimizer's lr over time.

    warmup       for this long the rate rises linearly from `warmup_from`
    warmup_from  a learning rate, not a share
    """

    place: ClassVar[str] = "a learning rate over time"
    warmup: Time | None = None
    warmup_from: FactorOrZero = 0.0

    @abstractmethod
    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        """The rate of update `step` of `num_steps`, counted from 0, once the warm-up is over."""

    @abstractmethod
    def summary(self) -> str:
        """The shape in the text of a plan."""

    def in_steps(self, run: Run) -> Self:
        return (
            super()
            .in_steps(run)
            .model_copy(
                update={
                    "warmup": run.steps(self.warmup or Time(0, "steps")),
                }
            )
        )

    @property
    def turns(self) -> tuple[int, ...]:
        """Steps at which the rate jumps."""
        return ()

    @property
    def num_warmup(self) -> int:
        return 0 if self.warmup is None else self.warmup.step

    def rate(self, lr: float, step: int, num_steps: int) -> float:
        """The rate of update `step`; in the warm-up warmup_from + (lr - warmup_from) * step / n."""
        if step < self.num_warmup:
            return self.warmup_from + (lr - self.warmup_from) * step / self.num_warmup
        return self.after_warmup(lr, step, num_steps)


class ConstantRate(Rate):
    """`constant()`: the optimizer's lr throughout, after the warm-up."""

    word: ClassVar[str] = "constant"

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        return lr

    def summary(self) -> str:
        return "constant"


class Multistep(Rate):
    """`multistep(at=[150ep, 225ep], gamma=0.1)`: times gamma at each moment."""

    at: tuple[Time, ...]
    gamma: Factor = 0.1

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(time.step for time in self.at)

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        return lr * self.gamma ** bisect_right(sorted(time.step for time in self.at), step)

    def summary(self) -> str:
        return f"times {self.gamma:g} at steps {', '.join(str(time.step) for time in self.at)}"


class Cosine(Rate):
    """`cosine()`: half a cosine from lr to `final` over what follows the warm-up."""

    final: FactorOrZero = 0.0

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        # u goes from 0 at the end of the warm-up to 1 at the last update.
        u = (step - self.num_warmup) / max(num_steps - 1 - self.num_warmup, 1)
        return self.final + (lr - self.final) * (1 + math.cos(math.pi * min(u, 1.0))) / 2

    def summary(self) -> str:
        return f"half a cosine to {self.final:g}"
