"""The learning rate as a function of the step, and when a run ends before its last epoch.

In:   the optimizer's lr, a step, the length of the run; for some words the metric of the deployed
      path, evaluation by evaluation.
Out:  one class for each word: the rate of that step, whether the run ends.
Not:  no state: a rate is a function of the step and of the evaluations (training/watch.py).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.units import Time
from dcil_dsl.words.word import RESOLVED, Factor, FactorOrZero, Length, RunLength, Word

if TYPE_CHECKING:
    from typing_extensions import Self


class Rate(Word):
    """`lr = word(...)` of `train`: the optimizer's lr over time.

    warmup       for this long the rate rises linearly from `warmup_from`
    warmup_from  a learning rate, not a share
    evaluates    whether it follows from evaluations, by `share_after`
    """

    place: ClassVar[str] = "a learning rate over time"
    evaluates: ClassVar[bool] = False
    warmup: Time | None = None
    warmup_from: FactorOrZero = 0.0

    @abstractmethod
    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        """The rate of update `step` of `num_steps`, counted from 0, once the warm-up is over."""

    @abstractmethod
    def summary(self) -> str:
        """The shape in the text of a plan."""

    def in_steps(self, run: RunLength) -> Self:
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

    def share_after(self, values: Sequence[tuple[int, float]]) -> float:
        """What the rate is multiplied by after some evaluations: (step, value, larger is better)
        of each."""
        return 1.0

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


class Polynomial(Rate):
    """`polynomial(power=0.9, final=0)`: final + (lr - final) (1 - u)^power, u from the end of the
    warm-up to the last step. With power 0.9 that of Chen et al. 2017, arXiv:1606.00915."""

    power: Factor = 1.0
    final: FactorOrZero = 0.0

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        u = (step - self.num_warmup) / max(num_steps - 1 - self.num_warmup, 1)
        share: float = (1 - min(u, 1.0)) ** self.power
        return self.final + (lr - self.final) * share

    def summary(self) -> str:
        return f"(1 - u)^{self.power:g} down to {self.final:g}"


class LinearRate(Rate):
    """`linear(final=0)`: in a straight line from lr, after the warm-up, to `final` at the end."""

    word: ClassVar[str] = "linear"
    final: FactorOrZero = 0.0

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        u = (step - self.num_warmup) / max(num_steps - 1 - self.num_warmup, 1)
        return lr + (self.final - lr) * min(u, 1.0)

    def summary(self) -> str:
        return f"a straight line to {self.final:g}"


class ExponentialRate(Rate):
    """`exponential(gamma=0.95, every=1ep)`: times gamma after each `every`, counted from the end
    of the warm-up."""

    word: ClassVar[str] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)]
    every: Length = Time(1, "epochs")

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        return lr * self.gamma ** ((step - self.num_warmup) // self.every.step)

    def summary(self) -> str:
        return f"times {self.gamma:g} every {count(self.every.step, 'step')}"


class OneCycle(Rate):
    """`one_cycle(peak=30% run, initial=0.004, final=0)`: half a cosine from `initial` up to lr at
    `peak`, and half a cosine down to `final` at the last step.

    initial, final  learning rates; None: lr / 25, and 0. It has no other warm-up. Smith & Topin
    2018, arXiv:1708.07120; torch's OneCycleLR has the same curve.
    """

    word: ClassVar[str] = "one_cycle"
    warmup: Annotated[Time | None, RESOLVED] = None
    warmup_from: Annotated[FactorOrZero, RESOLVED] = 0.0
    peak: Length = Time(0.3, "run")
    initial: FactorOrZero | None = None
    final: FactorOrZero = 0.0

    @property
    def turns(self) -> tuple[int, ...]:
        return (self.peak.step,)

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        peak, initial = self.peak.step, lr / 25 if self.initial is None else self.initial
        if step <= peak:
            return _half_cosine(initial, lr, step / peak)
        return _half_cosine(lr, self.final, min((step - peak) / max(num_steps - 1 - peak, 1), 1.0))

    def summary(self) -> str:
        start = "a 25th of lr" if self.initial is None else f"{self.initial:g}"
        return (
            f"from {start} up to lr at step {self.peak.step:,}, down to {self.final:g} at the end"
        )


class Plateau(Rate):
    """`plateau(factor=0.1, patience=10ep, least=0)`: times `factor` where the metric of the
    deployed path on held-out data has not improved for `patience`.

    least  the smallest share of lr that it falls to. The metric is the task's first. As torch's
    ReduceLROnPlateau with threshold 0, with a time in place of a count of evaluations.
    """

    evaluates: ClassVar[bool] = True
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Length = Time(10, "epochs")
    least: FactorOrZero = 0.0

    def after_warmup(self, lr: float, step: int, num_steps: int) -> float:
        return lr

    def share_after(self, values: Sequence[tuple[int, float]]) -> float:
        best, since, num_drops = -math.inf, 0, 0
        for step, value in values:
            if value > best:
                best, since = value, step
            elif step - since >= self.patience.step:
                num_drops, since = num_drops + 1, step
        return max(self.factor**num_drops, self.least)

    def summary(self) -> str:
        return (
            f"times {self.factor:g} after {count(self.patience.step, 'step')} without a better "
            "metric of the deployed path"
        )


def _half_cosine(start: float, stop: float, u: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * u)) / 2


# -- the end of a run ------------------------------------------------------------------------


class Stop(Word):
    """`stop = word(...)` of `train`."""

    place: ClassVar[str] = "a rule that ends the run"

    @abstractmethod
    def ends(self, values: Sequence[tuple[int, float]]) -> bool:
        """Whether the run ends after these evaluations at full sparsity: (step, value, larger is
        better) of each."""

    @abstractmethod
    def summary(self) -> str:
        """The rule in the text of a plan."""


class Early(Stop):
    """`early(patience=10ep)`: the run ends where the metric of the deployed path on held-out data
    has not improved for `patience`, counted from the first evaluation at full sparsity."""

    patience: Length = Time(10, "epochs")

    def ends(self, values: Sequence[tuple[int, float]]) -> bool:
        if not values:
            return False
        best = max(values, key=lambda one: one[1])[0]  # the first of equal ones
        return values[-1][0] - best >= self.patience.step

    def summary(self) -> str:
        return (
            f"early, after {count(self.patience.step, 'step')} at full sparsity without a better "
            "metric of the deployed path"
        )
