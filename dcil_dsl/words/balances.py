"""How several losses of one path are weighed against each other.

In:   the settings of `balance` in `train`.
Out:  one class for each word.
Not:  no gradients of terms (training/balance.py).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.units import Time
from dcil_dsl.words.word import Length, Word


class Balance(Word):
    """`balance = word(...)` of `train`. every: how often the terms are measured."""

    place: ClassVar[str] = "a balance of losses"
    every: Length = Time(5, "epochs")


class InverseDirichlet(Balance):
    """`inverse_dirichlet(every=5ep, average=0.5)`: terms of one path weigh by their gradients.

    every    how often the gradients of the terms are measured one by one
    average  how much of the weights so far stays in the new ones
    training/balance.py has the formula. Maddu et al. 2022, arXiv:2107.00940.
    """

    word: ClassVar[str] = "inverse_dirichlet"
    average: Annotated[float, Field(ge=0, lt=1)] = 0.5
