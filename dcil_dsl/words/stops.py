"""When a run ends before its last epoch: `stop = early(...)` of `train`.

In:   the metric of the deployed path, evaluation by evaluation.
Out:  one class for each word: whether the run ends.
Not:  no evaluation (training/watch.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.units import Time
from dcil_dsl.words.word import Length, Word


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
