"""Words that bring their own effect: one class is the word, its settings and its arithmetic.

In:   settings as fields, in the notation of pydantic; one method.
Out:  Score, GradientScore, Loss, View, Penalty, Integrator, to be subclassed.
Not:  how a class is found (find.py). Settings are numbers, texts, booleans, lists of those, and
      paths: what a plan can hold as it stands.

Methods see tensors on any device, float32 or wider. They must be pure: a run that is resumed asks
for the same numbers again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from dcil_dsl.extend.outside import Extension
from dcil_dsl.extend.word import Average, ScoredPath

if TYPE_CHECKING:
    from torch import Tensor

Gradients = Sequence["Tensor | None"]  # one a parameter; None where no gradient arrives


class Score(Extension):
    """`score = word`: how much a weight matters, by its value.

    average  a setting of every score: the decay of a moving average over the steps
    """

    place: ClassVar[str] = "a score"
    bare: ClassVar[bool] = True
    average: Average = None

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """One number a weight, in its shape; the larger, the longer it stays. Any sign."""


class GradientScore(Extension):
    """The same, by the gradient of one path, summed over the steps, or averaged with `average`.

    path  whose gradient; None, the default: the deployed one's
    """

    place: ClassVar[str] = "a score"
    positional: ClassVar[int] = 1
    bare: ClassVar[bool] = True
    path: ScoredPath = None
    average: Average = None

    @abstractmethod
    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one step adds; gradient is dL/dv at the view v that the path sees (split.py)."""


class Loss(Extension):
    """`loss word(...)`: a scalar. Its settings of type PathName say which paths it needs.

    output  where it is declared, `output: str | None = None`, the recipe may name the logits in
            what the model returns
    """

    place: ClassVar[str] = "a loss"

    @abstractmethod
    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        """The term, a mean over the batch.

        logits  of each path that the settings name: (B, C), or (B, C, H, W), (B, C, T)
        target  class numbers (B,), (B, H, W), (B, T); or shares of classes (B, K); or None
        """


class View(Extension):
    """`path name = word`: what a path sees of the weights that are kept; of the others, zeros.

    Gradients come back as if the view were the identity, and the shares of `update` route them.
    """

    place: ClassVar[str] = "a view"
    bare: ClassVar[bool] = True

    @abstractmethod
    def see(self, weight: Tensor, mask: Tensor) -> Tensor:
        """In the shape of the weight; mask is True where it is kept."""


class Penalty(Extension):
    """`penalty = [word(pruned, 1e-4)]`: a term whose gradient is added to that of some weights.

    part, weight  whose, and times what; `stairs`: the weight rises from 0 in so many equal steps
    """

    place: ClassVar[str] = "a penalty"
    positional: ClassVar[int] = 2
    part: Literal["kept", "reserve", "pruned"]
    weight: float
    stairs: int | None = None

    @abstractmethod
    def gradient(self, weights: Tensor) -> Tensor:
        """That of one layer, in its shape. `weights` are 0 outside of the part, where the result
        counts for nothing."""


class Integrator(Extension):
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
        """The gradient that the optimiser is given.

        first  the gradients g(w) of the step's batch; rate: the step's learning rate
        at     at(r, d) is g(w - r d), another evaluation
        """


def total(terms: Sequence[Gradients], weights: Sequence[float]) -> list[Tensor | None]:
    """The weighted sum of gradients, parameter by parameter; None where no gradient arrives.

    Every term has the same paths, so that a gradient arrives in all of them or in none.
    """
    return [
        None if own[0] is None else sum(weight * g for weight, g in zip(weights, own, strict=True))
        for own in zip(*terms, strict=True)
    ]
