"""The word `inverse_dirichlet`: its name, its text and its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.loss_balance.settings import SpreadSettings

if TYPE_CHECKING:
    from dcil_dsl.training.step import Step


class InverseDirichlet(SpreadSettings):
    """`inverse_dirichlet(every=5ep, average=0.5)`: terms of one path weigh by their gradients.

    every    how often the gradients of the terms are measured one by one
    average  how much of the weights so far stays in the new ones
    step.py has the formula. Maddu et al. 2022, arXiv:2107.00940.
    """

    word: ClassVar[str] = "inverse_dirichlet"

    def wrap(self, step: Step) -> Step:
        from dcil_dsl.extras.loss_balance.step import BalancedStep

        return BalancedStep(step)

    def summary(self) -> str:
        from dcil_dsl.plan.text import percent

        return (
            f"every {count(self.every.step, 'step')} the losses of a path weigh inversely to the "
            f"spread of their gradients, {percent(self.average)} of the weights so far kept"
        )
