"""What `inverse_dirichlet` may be given, and when it measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dcil_dsl.words.step import Balance

if TYPE_CHECKING:
    from dcil_dsl.plan.plan import WeightedLoss


class SpreadSettings(Balance):
    """The settings of the word, which the docstring of InverseDirichlet explains."""

    average: Annotated[float, Field(ge=0, lt=1)] = 0.5

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
