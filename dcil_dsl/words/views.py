"""What a path is: a view of the weights, or a network that only teaches. And parametrizations.

In:   a stored weight and its mask; what a path computes with, for an average of it.
Out:  one class for each word.
Not:  no routing of gradients (masking/split.py); no teacher is built (zoo/teacher.py) or run
      (compiler/teachers.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from dcil_dsl.words.word import RESOLVED, PathName, Word

if TYPE_CHECKING:
    from torch import Tensor

# Libraries of networks that a recipe may name: of these alone it runs code.
SOURCES = ("torchvision", "timm", "hf", "dcil")


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

    def left(self, mask: Tensor) -> Tensor:
        """True where the view may be other than zero."""
        return mask if self.prunes else mask.new_ones(mask.shape)


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

    def left(self, mask: Tensor) -> Tensor:
        return ~mask


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


class Teacher(Word):
    """`path name = word(...)`: a network that only teaches. It runs forward, in evaluation mode,
    on what the model is given; no weight learns from it, and it is in no exported file.

    follows  the path whose weights it averages; None: it never changes
    """

    place: ClassVar[str] = "a teacher"

    @property
    def follows(self) -> str | None:
        return None

    def summary(self) -> str:
        """What it is, in the text of a plan."""
        return self.describe()


class TrainedNetwork(Teacher):
    """`network("torchvision:resnet50", weights="IMAGENET1K_V2")`: a trained network, which stays
    as it is.

    source   torchvision:NAME, timm:NAME, dcil:NAME, hf:CLASS or hf:FOLDER, as `--model` takes them;
             `none`: the caller gives it, `teachers=` in Python
    weights  a file of weights, the folder of a run, or a name as `--weights` takes it; a path is
             relative to the recipe. `none`: those of the folder of hf:FOLDER
    options  keywords of its builder as Python writes them, "img_size=32, in_chans=1"; `none`: its
             defaults, or those of the run whose folder `weights` is
    digest   a sha256 of its tensors, which a resumed run compares
    It has as many classes as its weights. Hinton et al. 2015, arXiv:1503.02531.
    """

    word: ClassVar[str] = "network"
    positional: ClassVar[int] = 1
    source: str | None = None
    weights: str | None = None
    options: str | None = None
    digest: Annotated[str | None, RESOLVED] = None

    def summary(self) -> str:
        return self.describe("digest")


class PathAverage(Teacher):
    """`ema(sparse, decay=0.999)`: an average over the steps of what a path computes with.

        a <- decay a + (1 - decay) v

    v is the path's view of the weights at the beginning of a step, with its private modules and
    running statistics; a begins as the first v. Mean teacher, Tarvainen & Valpola 2017,
    arXiv:1703.01780, section 2.
    """

    word: ClassVar[str] = "ema"
    positional: ClassVar[int] = 1
    path: PathName
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999

    @property
    def follows(self) -> str:
        return self.path

    def average(self, means: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
        """One step of the recursion, in place."""
        import torch

        torch._foreach_lerp_(list(means), list(seen), 1 - self.decay)
