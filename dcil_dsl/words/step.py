"""Words that change the training step: integrators, mirror steps, averages of weights, balances.

In:   a step's gradients and a function that evaluates more of them; settings of `train`.
Out:  one class for each integrator and mirror step; the kinds of averages and balances, whose
      words are extras.
Not:  no weight changes here (training/integrate.py, training/step.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dcil_dsl.words.units import Time
from dcil_dsl.words.word import RESOLVED, Factor, FactorOrZero, LayersName, Length, Word

if TYPE_CHECKING:
    from torch import Tensor

Gradients = Sequence["Tensor | None"]  # one per parameter; None where no gradient arrives


class Integrator(Word):
    """`integrator = word(...)` of `train`: one gradient out of several.

    evaluations  how many gradients it asks for, the first included
    players      a setting of all: `each` moves kept and pruned weights in turns
    """

    place: ClassVar[str] = "an integrator"
    players: Literal["joint", "each"] = "joint"

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """At least 1."""

    @abstractmethod
    def combine(
        self, first: Gradients, rate: float, at: Callable[[float, Gradients], Gradients]
    ) -> Gradients:
        """The gradient that the optimizer is given.

        first  the gradients g(w) of the step's batch, or those that the step before has used
               (see `from_previous`)
        rate   the step's learning rate h
        at     at(r, d) is g(w - r d), another evaluation
        """

    @property
    def from_previous(self) -> bool:
        """Whether `first` is the combined gradient of the step before, zeros at first, and no
        evaluation."""
        return False

    @property
    def num_gradients(self) -> int:
        """How many gradients a step takes; players that move in turns share the first."""
        stages = self.evaluations
        return stages if self.players == "joint" else 1 + 2 * (stages - 1)

    def summary(self) -> str:
        """The rule in the text of a plan."""
        return self.describe("players")


class Heun(Integrator):
    """`heun(players=joint)`: the mean of the gradients at both ends of a step.

    players  `each`: kept weights move while the pruned ones stand still, and the other way round.
    Qin et al. 2020, arXiv:2010.15040.
    """

    @property
    def evaluations(self) -> int:
        return 2

    def combine(
        self, first: Gradients, rate: float, at: Callable[[float, Gradients], Gradients]
    ) -> Gradients:
        return total([first, at(rate, first)], [1 / 2, 1 / 2])

    def summary(self) -> str:
        return "Heun's mean of the gradients at both ends of the step"


class RK4(Integrator):
    """`rk4(players=joint)`: the four gradients of Runge and Kutta. arXiv:2010.15040."""

    @property
    def evaluations(self) -> int:
        return 4

    def combine(
        self, first: Gradients, rate: float, at: Callable[[float, Gradients], Gradients]
    ) -> Gradients:
        second = at(rate / 2, first)
        third = at(rate / 2, second)
        fourth = at(rate, third)
        return total([first, second, third, fourth], [1 / 6, 1 / 3, 1 / 3, 1 / 6])

    def summary(self) -> str:
        return "the four gradients of Runge and Kutta"


class Extrapolate(Integrator):
    """`extrapolate(rate=none, direction=previous)`: the gradient a little further on.

    rate       how far, times the direction; None: the step's learning rate
    direction  the gradient of the step before, or one taken `fresh`
    Lin et al. 2020, arXiv:2006.05720.
    """

    rate: Factor | None = None
    direction: Literal["previous", "fresh"] = "previous"
    players: Annotated[Literal["joint"], RESOLVED] = "joint"

    @property
    def evaluations(self) -> int:
        return 1 if self.from_previous else 2

    @property
    def from_previous(self) -> bool:
        return self.direction == "previous"

    def combine(
        self, first: Gradients, rate: float, at: Callable[[float, Gradients], Gradients]
    ) -> Gradients:
        return at(rate if self.rate is None else self.rate, first)

    def summary(self) -> str:
        far = "the learning rate" if self.rate is None else f"{self.rate:g}"
        last = "the step before" if self.from_previous else "the same batch"
        return f"the gradient where {far} times the gradient of {last} leads"


class Implicit(Integrator):
    """`implicit(iterations=3)`: the gradient at the end of the step, by fixed-point iteration.

    Li et al. 2023, arXiv:2303.01767.
    """

    iterations: Annotated[int, Field(ge=2)] = 3
    players: Annotated[Literal["joint"], RESOLVED] = "joint"

    @property
    def evaluations(self) -> int:
        return self.iterations

    def combine(
        self, first: Gradients, rate: float, at: Callable[[float, Gradients], Gradients]
    ) -> Gradients:
        for _ in range(self.iterations - 1):
            first = at(rate, first)
        return first

    def summary(self) -> str:
        return "the gradient where the step ends, an implicit Euler step on the routed field"


def total(terms: Sequence[Gradients], weights: Sequence[float]) -> list[Tensor | None]:
    """The weighted sum of gradients, parameter by parameter; None where no gradient arrives.

    Every term has the same paths, so that a gradient arrives in all of them or in none.
    """
    return [
        None if own[0] is None else sum(weight * g for weight, g in zip(weights, own, strict=True))
        for own in zip(*terms, strict=True)
    ]


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


class Mirror(Word):
    """`mirror = word(...)` of `train`: what happens to the weights after the optimizer's step."""

    place: ClassVar[str] = "a mirror step"

    @abstractmethod
    def factor(self, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """What each entry of a weight of two or more axes is multiplied by.

        weight    after the optimizer's step
        gradient  that the optimizer was given; rate: the learning rate of the step
        """

    def summary(self) -> str:
        """The rule in the text of a plan."""
        return self.describe()


class Ham(Mirror):
    """`ham(alpha=200, beta=0.001)`: w <- w exp(-rate (alpha sign(w) g + beta)).

    alpha  how much faster weights near zero change their size, and so their sign
    beta   how fast all of them shrink
    The exponent is held within -5 and 5, as in the authors' code. Hyperbolic aware minimization,
    Jacobs et al. 2026, arXiv:2506.02630.
    """

    alpha: FactorOrZero = 200.0
    beta: FactorOrZero = 1e-3

    def factor(self, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        exponent = -rate * (self.alpha * weight.sign() * gradient + self.beta)
        return exponent.clamp(-5, 5).exp()


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
