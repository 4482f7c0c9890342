"""Terms whose gradients are added to those of the kept, reserved or pruned weights.

In:   the weights of one part of a layer.
Out:  one class for each word: a gradient in their shape.
Not:  no choice of the part (compiler/dynamics.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dcil_dsl.words.word import Factor, Word

if TYPE_CHECKING:
    from torch import Tensor


class Penalty(Word):
    """`penalty = [word(pruned, 1e-4)]`: added after clipping and in no reported loss.

    part    whose gradient: that of the kept, the reserved or the pruned weights
    weight  the coefficient
    stairs  the coefficient rises over the run in this many equal steps, from 0; None: constant
    """

    place: ClassVar[str] = "a penalty"
    positional: ClassVar[int] = 2
    formula: ClassVar[str] = ""
    needs_norm: ClassVar[bool] = False
    part: Literal["kept", "reserve", "pruned"]
    weight: Factor
    stairs: Annotated[int, Field(ge=2)] | None = None

    @abstractmethod
    def gradient(self, weights: Tensor) -> Tensor:
        """That of one layer, in its shape. `weights` are 0 outside the part, where the result is
        ignored."""

    def weight_at(self, step: int, num_steps: int) -> float:
        """The coefficient at `step`: weight, or with stairs weight * floor(n t / T) / n."""
        if self.stairs is None:
            return self.weight
        return self.weight * (self.stairs * step // max(num_steps, 1)) / self.stairs

    def summary(self) -> str:
        return self.formula or self.describe("part", "weight", "stairs")


class Square(Penalty):
    """`square(pruned, 2e-4)`: weight / 2 * the sum of squares, whose gradient is weight * w.

    On the pruned weights: SR-STE, Zhou et al. 2021, arXiv:2102.04010, eq. 10.
    """

    formula: ClassVar[str] = "half the squares"

    def gradient(self, weights: Tensor) -> Tensor:
        return weights


class Norm(Penalty):
    """`norm(kept, 1e-3)`: weight * the root of the sum of squares, layer by layer.

    On the kept weights: FedDIP, Long et al. 2023, arXiv:2309.06805.
    """

    formula: ClassVar[str] = "the norm"
    needs_norm: ClassVar[bool] = True

    def gradient(self, weights: Tensor, norm: Tensor | None = None) -> Tensor:
        import torch

        norm = weights.norm() if norm is None else norm
        return weights / norm.clamp(min=torch.finfo(weights.dtype).tiny)  # 0 / 0 of no weights
