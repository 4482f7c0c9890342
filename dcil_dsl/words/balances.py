"""How several losses of one path are weighed against each other: the kind. The words are extras.

In:   the settings of `balance` in `train`.
Out:  Balance, the base of the words.
Not:  no word.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from dcil_dsl.words.units import Time
from dcil_dsl.words.word import Length, Word


class Balance(Word):
    """`balance = word(...)` of `train`. every: how often the terms are measured."""

    place: ClassVar[str] = "a balance of losses"
    every: Length = Time(5, "epochs")

    @abstractmethod
    def wrap(self, step: Any) -> Any:
        """The step (training/step.py) with the balance around it."""

    @abstractmethod
    def num_gradients(self, losses: Sequence[Any], step: int) -> int:
        """How many gradients it takes at `step` in addition to the step's own.

        losses  those of the plan
        """

    def summary(self) -> str:
        """The word in the text of a plan."""
        return self.describe()
