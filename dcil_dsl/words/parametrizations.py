"""Weights stored as other numbers than the network computes with.

In:   stored numbers, or weights.
Out:  one class for each word: weights from stored numbers, and back.
Not:  no masks.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.word import Word

if TYPE_CHECKING:
    from torch import Tensor


class Parametrization(Word):
    """`param = word(...)`: the stored numbers are theta, the weights a function of them."""

    place: ClassVar[str] = "a parametrisation"

    @abstractmethod
    def weight(self, theta: Tensor) -> Tensor:
        """The weights, with their gradient. Must keep the order of magnitudes."""

    @abstractmethod
    def stored(self, weight: Tensor) -> Tensor:
        """theta, so that a network starts with the weights it has."""

    @abstractmethod
    def summary(self) -> str:
        """The formula in the text of a plan."""


class Power(Parametrization):
    """`power(alpha=2)`: w = theta |theta|^(alpha - 1).

    A gradient that grows with theta makes small weights smaller; zero is a fixed point, and weight
    decay acts on theta. Schwarz et al. 2021, "Powerpropagation", arXiv:2110.00296, section 2.
    """

    positional: ClassVar[int] = 1
    alpha: Annotated[float, Field(ge=1)]

    def weight(self, theta: Tensor) -> Tensor:
        from dcil_dsl.words.power import RaisePower

        return RaisePower.apply(theta, self.alpha)  # type: ignore[no-any-return]

    def stored(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs().pow(1 / self.alpha)

    def summary(self) -> str:
        return f"w = theta |theta|^{self.alpha - 1:g}"
