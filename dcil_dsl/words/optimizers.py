"""How the weights follow their gradients.

In:   parameters by name, in groups (weight_groups.py).
Out:  one class for each word: a torch optimizer, and what it remembers.
Not:  no learning rate over time (rates.py). No update is written here: it is torch's, or timm's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.words.weight_groups import ParameterGroup
from dcil_dsl.words.word import Factor, FactorOrZero, Word

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Not on a CPU: there the fused step neither checks that weight and gradient have the same memory
# layout nor is it faster for channels_last weights.
FUSED_ON = ("cuda",)


class Optimizer(Word):
    """`optimizer = word(lr=...)` of `train`.

    entrywise  whether each entry of a weight is updated alone, so that rows can lie apart
    """

    place: ClassVar[str] = "an optimizer"
    entrywise: ClassVar[bool] = True
    lr: Factor
    if TYPE_CHECKING:
        weight_decay: float  # a setting of each optimizer

    @abstractmethod
    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        """The optimizer over all parts, each with its own share of the rate and its own decay."""

    @abstractmethod
    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer remembers of a parameter, by name, as it is before the first step."""

    def torch_groups(self, parts: list[ParameterGroup]) -> list[dict[str, Any]]:
        """The parts as torch's parameter groups. `lr_scale`: what set_rate multiplies."""
        return [
            {
                "params": part.named,
                "lr": self.lr * part.lr_scale,
                "lr_scale": part.lr_scale,
                "weight_decay": self.weight_decay
                if part.weight_decay is None
                else part.weight_decay,
            }
            for part in parts
        ]


class SGD(Optimizer):
    """`sgd(lr=0.1, momentum=0.9, nesterov=false, weight_decay=0)`: torch.optim.SGD."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: FactorOrZero = 0.0

    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        import torch

        optimizer = torch.optim.SGD(
            self.torch_groups(parts),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=can_fuse(parts),
        )
        if self.momentum:
            # Zeros are what a missing buffer means (momentum * 0 + g = g), but fused SGD takes the
            # buffers to be all there or all missing, and a path that starts late has its own.
            for part in parts:
                for _, parameter in part.named:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        import torch

        return {"momentum_buffer": torch.zeros_like(parameter)} if self.momentum else {}


Decay = Annotated[float, Field(ge=0, lt=1)]


class Adam(Optimizer):
    """`adam(lr=0.001, betas=[0.9, 0.999], eps=1e-8, weight_decay=0)`: torch.optim.Adam.

    The decay is added to the gradient, before the moments. Kingma & Ba 2015, arXiv:1412.6980,
    algorithm 1.
    """

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Factor = 1e-8
    weight_decay: FactorOrZero = 0.0

    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        return self.kind()(
            self.torch_groups(parts),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=can_fuse(parts),
        )

    def kind(self) -> type[torch.optim.Adam]:
        """The class of torch."""
        import torch

        return torch.optim.Adam

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        return _moments(parameter, parameter.device if parameter.device.type in FUSED_ON else None)


class AdamW(Adam):
    """`adamw(lr=0.001, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01)`: torch.optim.AdamW.

    The decay is subtracted from the weight. Loshchilov & Hutter 2019, arXiv:1711.05101,
    algorithm 2.
    """

    word: ClassVar[str] = "adamw"
    weight_decay: FactorOrZero = 0.01

    def kind(self) -> type[torch.optim.Adam]:
        import torch

        return torch.optim.AdamW


class RMSprop(Optimizer):
    """`rmsprop(lr=0.01, alpha=0.99, eps=1e-8, momentum=0, centered=false, weight_decay=0)`:
    torch.optim.RMSprop. Graves 2013, arXiv:1308.0850, eqs. 38-45, without its constants."""

    word: ClassVar[str] = "rmsprop"
    alpha: Decay = 0.99
    eps: Factor = 1e-8
    momentum: Decay = 0.0
    centered: bool = False
    weight_decay: FactorOrZero = 0.0

    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.RMSprop(
            self.torch_groups(parts),
            lr=self.lr,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
            centered=self.centered,
        )

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        import torch

        names = ["square_avg"]
        names += ["momentum_buffer"] * (self.momentum > 0) + ["grad_avg"] * self.centered
        found = {name: torch.zeros_like(parameter) for name in names}
        return {"step": torch.zeros(())} | found


class Lamb(Optimizer):
    """`lamb(lr=0.002, betas=[0.9, 0.999], eps=1e-6, weight_decay=0.01)`: timm.optim.Lamb.

    Adam's step plus decay, scaled in each weight to the weight's norm; a weight without decay is
    not scaled. You et al. 2020, arXiv:1904.00962, algorithm 2. timm's own clipping is off: `clip`
    of `train` clips.
    """

    entrywise: ClassVar[bool] = False
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Factor = 1e-6
    weight_decay: FactorOrZero = 0.01

    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        # timm counts steps in each group: a group for each weight, so that each has its own count.
        alone = [part._replace(named=[one]) for part in parts for one in part.named]
        optimizer: torch.optim.Optimizer = _timm(self.called).Lamb(
            self.torch_groups(alone),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            max_grad_norm=None,
        )
        return optimizer

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        return _moments(parameter)


class Muon(Optimizer):
    """`muon(lr=0.02, momentum=0.95, nesterov=true, betas=[0.9, 0.95], weight_decay=0)`:
    timm.optim.Muon.

    The momentum of each matrix, a convolution's filters as its rows, is made orthogonal by five
    iterations of Newton and Schulz; its step has the size of an AdamW step (`match_rms_adamw`: Liu
    et al. 2025, arXiv:2502.16982, eq. 4). Vectors and depthwise convolutions follow AdamW at the
    same rate, with Nesterov's momentum where `nesterov`. Jordan et al. 2024,
    kellerjordan.github.io/posts/muon.
    """

    entrywise: ClassVar[bool] = False
    momentum: Decay = 0.95
    nesterov: bool = True
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: FactorOrZero = 0.0

    def make(self, parts: list[ParameterGroup]) -> torch.optim.Optimizer:
        groups = []
        for part in parts:
            for is_matrix in (True, False):
                named = [one for one in part.named if _is_matrix(one[1]) == is_matrix]
                for group in self.torch_groups([part._replace(named=named)] if named else []):
                    groups.append(group | {"use_muon": is_matrix})
        optimizer: torch.optim.Optimizer = _timm(self.called).Muon(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=self.betas,
        )
        return optimizer

    def entries(self, parameter: Tensor) -> dict[str, Tensor]:
        import torch

        if _is_matrix(parameter):
            return {"momentum_buffer": torch.zeros_like(parameter)}
        return _moments(parameter)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and min(parameter.shape[:2]) > 1


def _timm(word: str) -> Any:
    """timm.optim. InputError where timm is not installed."""
    try:
        import timm.optim
    except ImportError:
        raise InputError(
            f"`{word}` is an optimizer of timm, which is not installed",
            help='pip install "dcil-dsl[timm]"',
        ) from None
    return timm.optim


def _moments(parameter: Tensor, counts_on: torch.device | None = None) -> dict[str, Tensor]:
    """What Adam remembers. counts_on: where it counts its steps; None: on the host."""
    import torch

    zeros = torch.zeros_like(parameter)
    step = torch.zeros((), device=counts_on or "cpu")
    return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros}


def can_fuse(parts: list[ParameterGroup]) -> bool:
    named = [one for part in parts for one in part.named]
    return all(p.device.type in FUSED_ON and p.is_floating_point() for _, p in named)
