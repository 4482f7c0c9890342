"""How much a weight matters: the larger its score, the longer it stays.

In:   weights, gradients, chance.
Out:  one class for each word; a score is one number per weight, in the weight's shape.
Not:  no sums over steps, no masks (masking/).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from dcil_dsl.words.word import Average, RunLength, ScoredPath, Word

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self


@dataclass(frozen=True)
class Draw:
    """The inputs of a random score in addition to the shape of the weight.

    start  the position, in row-major order, of the first entry that this process holds
    """

    seed: int
    parameter: str
    step: int
    start: int = 0

    @property
    def key(self) -> int:
        """64 bits that differ with the seed, the weight and the step."""
        text = f"{self.seed} {self.parameter} {self.step}"
        return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


class AnyScore(Word):
    """A score: of a weight's value, of gradients, or of chance. `place`, `bare`: see Word.

    signed    whether scores may be negative; then they are compared by rank
    by_size   whether it orders single weights by their magnitude
    average   the decay of a moving average over the steps; None: the last value, or the sum
    path      the path whose gradient is taken; None: no gradient
    """

    place: ClassVar[str] = "a score"
    signed: ClassVar[bool] = True
    by_size: ClassVar[bool] = False
    bare: ClassVar[bool] = True

    @property
    def decay(self) -> float | None:
        return getattr(self, "average", None)

    @property
    def gradient_path(self) -> str | None:
        return getattr(self, "path", None)

    @property
    def has_state(self) -> bool:
        """Whether it depends on more than the weights: each then has a buffer."""
        return self.decay is not None or self.gradient_path is not None

    def at(self, weight: Tensor, draw: Draw) -> Tensor:
        """The score of a weight, in its shape, from nothing but its value and `draw`."""
        raise NotImplementedError

    def summary(self) -> str:
        """The score in the text of a plan."""
        words = self.describe("path", "average")
        if self.gradient_path is not None:
            words += f" ({self._of_gradient()} of path {self.gradient_path})"
        if self.decay is not None:
            words += f", averaged with {self.decay:g} over the steps"
        elif self.gradient_path is not None:
            words += ", summed over the steps"
        return words

    def _of_gradient(self) -> str:
        return "of the gradient"


class Score(AnyScore):
    """`score = word`: how much a weight matters, by its value."""

    average: Average = None

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """One number per weight, in its shape; the larger, the longer it stays. Any sign."""

    def at(self, weight: Tensor, draw: Draw) -> Tensor:
        return self.score(weight)


class GradientScore(AnyScore):
    """A score of the gradient of one path, summed over the steps or averaged with `average`.

    path  None in a recipe: the deployed path
    """

    positional: ClassVar[int] = 1
    formula: ClassVar[str] = ""
    path: ScoredPath = None
    average: Average = None

    @abstractmethod
    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one step adds; gradient is dL/dv at the view v that the path sees, see SplitWeight.

        With v = w * m it is that of a straight-through mask: a pruned weight is scored too.
        """

    def in_steps(self, run: RunLength) -> Self:
        return super().in_steps(run).model_copy(update={"path": self.path or run.deploy})

    def _of_gradient(self) -> str:
        return self.formula or super()._of_gradient()


class Magnitude(Score):
    """`magnitude`: |w|."""

    signed: ClassVar[bool] = False
    by_size: ClassVar[bool] = True

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs()


class L2(Score):
    """`l2`: w^2. The order of single weights is that of `magnitude`, that of filters is not."""

    signed: ClassVar[bool] = False
    by_size: ClassVar[bool] = True

    def score(self, weight: Tensor) -> Tensor:
        return weight.square()


class Taylor(GradientScore):
    """`taylor(sparse)`: |w * gradient|, summed over the steps.

    Molchanov et al. 2019, arXiv:1906.10771, eq. 7 without the square, as in Michel et al. 2019,
    arXiv:1905.10650.
    """

    formula: ClassVar[str] = "|w * gradient|"
    signed: ClassVar[bool] = False

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs()


class Movement(GradientScore):
    """`movement(sparse)`: -w * gradient, summed over the steps.

    Sanh et al. 2020, arXiv:2005.07683, section 4.
    """

    formula: ClassVar[str] = "-w * gradient"

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return -(weight * gradient)


class Gradient(GradientScore):
    """`gradient(sparse)`: |gradient|, summed over the steps."""

    formula: ClassVar[str] = "|gradient|"
    signed: ClassVar[bool] = False

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs()


class Random(AnyScore):
    """`random`: drawn once from the recipe's seed, or with `redraw` anew for every mask."""

    signed: ClassVar[bool] = False
    redraw: bool = False

    def at(self, weight: Tensor, draw: Draw) -> Tensor:
        one = draw if self.redraw else Draw(draw.seed, draw.parameter, 0, draw.start)
        return uniform(tuple(weight.shape), one.key, weight.device, one.start)

    def summary(self) -> str:
        return self.called + (", drawn anew for every mask" if self.redraw else "")


# -- random numbers ------------------------------------------------------------------------------


def uniform(shape: tuple[int, ...], key: int, device: torch.device, start: int = 0) -> Tensor:
    """Uniform in [0, 1), float64: a function of 64 bits and of each entry's position from `start`.

    No generator has a state and no two devices differ: entry i is the mixed bits of key + i * c,
    SplitMix64 of Steele et al. 2014. Integers wrap around, as they do there.
    """
    import torch

    size = 1
    for length in shape:
        size *= length
    places = torch.arange(start + 1, start + size + 1, device=device)
    bits = places * _signed(0x9E3779B97F4A7C15) + _signed(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    bits = bits ^ _shifted(bits, 31)
    return (_shifted(bits, 11).double() * 2.0**-53).view(shape)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """To the right, zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    """64 bits as the int64 that has them."""
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
