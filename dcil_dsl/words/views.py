"""What a path computes with in place of a stored weight: its view and its parametrization.

In:   a stored weight and its mask.
Out:  one class for each word.
Not:  no routing of gradients (masking/split.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from dcil_dsl.words.word import Word

if TYPE_CHECKING:
    from torch import Tensor


class Soft(NamedTuple):
    """The soft threshold of one weight.

    threshold  a tensor of one number
    scale      one number per filter, in a shape that broadcasts over the weight
    """

    threshold: Tensor
    scale: Tensor


class AnyView(Word):
    """A view. Gradients return as through the identity, and the shares of `update` route them.

    formula    what the path computes with, for the text of a plan
    prunes     whether pruned weights are zeros on this path
    entrywise  whether each entry of the view follows from that entry of the weight alone, so that
               a process that holds some rows can compute it
    soft       whether it needs a threshold and scales
    """

    place: ClassVar[str] = "a view"
    bare: ClassVar[bool] = True
    formula: ClassVar[str] = ""
    prunes: ClassVar[bool] = True
    entrywise: ClassVar[bool] = False
    soft: ClassVar[bool] = False

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        """The view, in the weight's shape."""
        raise NotImplementedError


class View(AnyView):
    """`path name = word`: what a path sees of the weights that are kept; of the others, zeros."""

    @abstractmethod
    def see(self, weight: Tensor, mask: Tensor) -> Tensor:
        """In the shape of the weight; mask is True where it is kept."""

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        # where, not a product: an infinite weight that is pruned must not become NaN.
        return self.see(weight, mask).where(mask, weight.new_zeros(()))


class Masked(AnyView):
    """`masked`: w where the mask keeps it, else 0."""

    formula: ClassVar[str] = "w * m"
    entrywise: ClassVar[bool] = True

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        return weight.where(mask, weight.new_zeros(()))


class Full(AnyView):
    """`full`: w."""

    formula: ClassVar[str] = "w"
    prunes: ClassVar[bool] = False
    entrywise: ClassVar[bool] = True

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        return weight.view_as(weight)


class Complement(AnyView):
    """`complement`: w where the mask prunes it, else 0."""

    formula: ClassVar[str] = "w * (1 - m)"
    entrywise: ClassVar[bool] = True

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        return weight.new_zeros(()).where(mask, weight)


class SoftThreshold(AnyView):
    """`soft_threshold`: c sign(w) max(|w| - t, 0) where the mask keeps w, else 0.

    t is the largest pruned |w|, c makes up for the shrinking filter by filter. ST-3,
    Vanderschueren & De Vleeschouwer 2023, "Are Straight-Through gradients and Soft-Thresholding
    all you need for Sparse Training?".
    """

    formula: ClassVar[str] = "c sign(w) max(|w| - t, 0) * m"
    entrywise: ClassVar[bool] = True
    soft: ClassVar[bool] = True

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        assert soft is not None
        shrunk = weight - weight.clamp(-soft.threshold, soft.threshold)
        return (soft.scale * shrunk).where(mask, weight.new_zeros(()))


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
        from dcil_dsl.words.tensors.numbers import RaisePower

        weight: Tensor = RaisePower.apply(theta, self.alpha)
        return weight

    def stored(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs().pow(1 / self.alpha)

    def summary(self) -> str:
        return f"w = theta |theta|^{self.alpha - 1:g}"
