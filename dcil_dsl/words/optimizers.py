"""How the weights follow their gradients.

In:   parameters by name.
Out:  one class for each word: a torch optimizer, and what it remembers.
Not:  no learning rate over time (rates.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.word import Factor, FactorOrZero, Word

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

    Named = list[tuple[str, Parameter]]

# Not on a CPU: there the fused step neither checks that weight and gradient have the same memory
# layout nor is it faster for channels_last weights.
FUSED_ON = ("cuda",)


class Optimizer(Word):
    """`optimizer = word(lr=...)` of `train`."""

    place: ClassVar[str] = "an optimizer"
    lr: Factor

    @abstractmethod
    def make(self, named: Named) -> torch.optim.Optimizer:
        """The optimizer over all parameters alike: weight decay acts on every one of them."""

    @abstractmethod
    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer remembers of a parameter, by name, as it is before the first step."""


class SGD(Optimizer):
    """`sgd(lr=0.1, momentum=0.9, nesterov=false, weight_decay=0)`: torch.optim.SGD."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: FactorOrZero = 0.0

    def make(self, named: Named) -> torch.optim.Optimizer:
        import torch

        optimizer = torch.optim.SGD(
            named,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=can_fuse(named),
        )
        if self.momentum:
            # Zeros are what a missing buffer means (momentum * 0 + g = g), but fused SGD takes the
            # buffers to be all there or all missing, and a path that starts late has its own.
            for _, parameter in named:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        import torch

        return {"momentum_buffer": torch.zeros_like(parameter)} if self.momentum else {}


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optimizer):
    """`adamw(lr=0.001, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01)`: torch.optim.AdamW."""

    word: ClassVar[str] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Factor = 1e-8
    weight_decay: FactorOrZero = 0.01

    def make(self, named: Named) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            named,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=can_fuse(named),
        )

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        import torch

        zeros = torch.zeros_like(parameter)
        counts_on = parameter.device if parameter.device.type in FUSED_ON else "cpu"
        step = torch.zeros((), device=counts_on)
        return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros}


def can_fuse(named: Named) -> bool:
    return all(p.device.type in FUSED_ON and p.is_floating_point() for _, p in named)
