"""The word `inverse_dirichlet`: its settings, when it measures, and its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.step import Balance

if TYPE_CHECKING:
    from dcil_dsl.plan.plan import WeightedLoss
    from dcil_dsl.training.step import Step


class InverseDirichlet(Balance):
    """`inverse_dirichlet(every=5ep, average=0.5)`: terms of one path weigh by their gradients.

    every    how often the gradients of the terms are measured one by one
    average  how much of the weights so far stays in the new ones
    step.py has the formula. Maddu et al. 2022, arXiv:2107.00940.
    """

    word: ClassVar[str] = "inverse_dirichlet"
    average: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def wrap(self, step: Step) -> Step:
        from dcil_dsl.extras.loss_balance.step import BalancedStep

        return BalancedStep(step, self)

    def measured_at(self, losses: Sequence[WeightedLoss], step: int) -> list[tuple[int, ...]]:
        """For each path with several terms open at `step`, their places; none between measurings.

        A term counts with the first of its paths, the student of a KL; one times 0 teaches
        nothing and takes no part.
        """
        if step % self.every.step:
            return []
        terms: dict[str, list[int]] = {}
        for i, loss in enumerate(losses):
            if loss.coefficient and loss.window.covers(step):
                terms.setdefault(loss.term.paths[0], []).append(i)
        return [tuple(places) for places in terms.values() if len(places) > 1]

    def num_gradients(self, losses: Sequence[WeightedLoss], step: int) -> int:
        return sum(map(len, self.measured_at(losses, step)))

    def summary(self) -> str:
        from dcil_dsl.plan.text import percent

        return (
            f"every {count(self.every.step, 'step')} the losses of a path weigh inversely to the "
            f"spread of their gradients, {percent(self.average)} of the weights so far kept"
        )
