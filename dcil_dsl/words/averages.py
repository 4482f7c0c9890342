"""Averages of weights that are deployed in place of the weights: the kind. The words are extras.

In:   the settings of `average` in `train`.
Out:  WeightAverage, the base of the words.
Not:  no word; `ema` is a setting of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from dcil_dsl.words.word import RESOLVED, LayersName, Word


class WeightAverage(Word):
    """`average = word(layers, ...)` of `train`.

    layers      what a `layers` definition names: the modules whose parameters are averaged
    parameters  the names of those parameters, once resolved
    """

    place: ClassVar[str] = "an average of weights"
    layers: LayersName
    parameters: Annotated[tuple[str, ...], RESOLVED] = ()

    @abstractmethod
    def wrap(self, step: Any) -> Any:
        """The step (training/step.py) with the average around it."""

    @abstractmethod
    def fault(
        self, chosen: Collection[str], pruned: Collection[str], num_parameters: int, num_steps: int
    ) -> tuple[str, str | None] | None:
        """Why the word has no meaning for a model and a run, with a help line; None if it has.

        chosen, pruned  the parameters of the named layers, and those that a rule prunes
        num_parameters  of the whole model
        """

    def summary(self) -> str:
        """The word in the text of a plan."""
        return self.describe("parameters")
