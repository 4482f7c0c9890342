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
    """`soft_threshold(power=1, rescale=true)`: c sign(w) (|w|^p - t^p)^(1/p) where the mask keeps
    w, else 0.

    power    p; the larger, the less a weight far above the threshold t shrinks
    rescale  c makes up for the shrinking filter by filter; without it c is 1
    t is the largest pruned |w|. With p = 1 and c ST-3, Vanderschueren & De Vleeschouwer 2023,
    arXiv:2212.01076; with p = 3 and without c Feather, Georgoulakis et al. 2023 (BMVC).
    """

    soft: ClassVar[bool] = True
    entrywise: ClassVar[bool] = True
    power: Annotated[float, Field(ge=1)] = 1.0
    rescale: bool = True

    @property
    def formula(self) -> str:  # type: ignore[override]
        scale = "c " if self.rescale else ""
        if self.power == 1:
            return f"{scale}sign(w) max(|w| - t, 0) * m"
        p = f"{self.power:g}"
        return f"{scale}sign(w) max(|w|^{p} - t^{p}, 0)^(1/{p}) * m"

    def of(self, weight: Tensor, mask: Tensor, soft: Soft | None = None) -> Tensor:
        assert soft is not None
        if self.power == 1:
            shrunk = weight - weight.clamp(-soft.threshold, soft.threshold)
        else:  # |w| outside of the root: the powers of small weights are beyond float32
            part = (soft.threshold / weight.abs()).clamp(max=1).pow(self.power)
            shrunk = weight * (1 - part).pow(1 / self.power)
        seen = soft.scale * shrunk if self.rescale else shrunk
        return seen.where(mask, weight.new_zeros(()))


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
