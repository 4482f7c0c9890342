"""DCIL as a careful PyTorch user writes it: two convolution networks over one set of weights.

It is what the compiled step is compared with, in results and in time, and shares no code with
dcil_dsl. The maskers are those of the authors' code (Masker_part and Masker_full of
github.com/Jangho-Kim/DCIL-pytorch, arXiv:2109.04660), written anew. The authors set a flag on
every layer before each of the two forwards; here each path has modules of its own that hold the
same Parameters, which costs less and is easier for torch.compile.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskPart(torch.autograd.Function):
    """Sparse path: forward w * m, backward dw = m * dv."""

    @staticmethod
    def forward(ctx, w, mask):
        ctx.save_for_backward(mask)
        return w * mask

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad * mask, None


class MaskFull(torch.autograd.Function):
    """Dense path: forward w, backward dw = (1 - m) * dv."""

    @staticmethod
    def forward(ctx, w, mask):
        ctx.save_for_backward(mask)
        return w.view_as(w)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad * (~mask if mask.dtype == torch.bool else 1 - mask), None


class PathConv2d(nn.Conv2d):
    """A convolution on one path, over a weight and a mask that both paths hold.

    masker None: the weight is not pruned and learns from the sparse path alone, `learns` or not.
    """

    masker: type[torch.autograd.Function] | None = None
    learns: bool = True

    def forward(self, x: Tensor) -> Tensor:
        if self.masker is not None:
            w = self.masker.apply(self.weight, self.mask)
        else:
            w = self.weight if self.learns else self.weight.detach()
        return self._conv_forward(x, w, self.bias)


class PlainDcil(nn.Module):
    """Both paths of a convolution network whose every other module with weights is private.

    pruned      names of the convolutions' weights that have a mask, "layer1.0.conv1.weight"
    private     names of the modules that each path has for itself
    mask_dtype  of the mask buffers: the authors' are floats
    """

    def __init__(self, model: nn.Module, pruned, private, mask_dtype=torch.float32):
        super().__init__()
        self.sparse, self.dense = copy.deepcopy(model), copy.deepcopy(model)
        self.pruned, private = tuple(pruned), set(private)
        for name, module in list(model.named_modules()):
            if name in private or not any(True for _ in module.parameters(recurse=False)):
                continue
            if type(module) is not nn.Conv2d:
                raise TypeError(f"`{name}` ({type(module).__name__}) would need code of its own")
            weight = nn.Parameter(module.weight.detach().clone())
            bias = None if module.bias is None else nn.Parameter(module.bias.detach().clone())
            mask = torch.ones_like(module.weight, dtype=mask_dtype, requires_grad=False)
            is_pruned = f"{name}.weight" in self.pruned
            for net, masker in ((self.sparse, MaskPart), (self.dense, MaskFull)):
                conv = net.get_submodule(name)
                conv.__class__ = PathConv2d
                conv.weight, conv.bias = weight, bias
                conv.masker, conv.learns = masker if is_pruned else None, net is self.sparse
                if is_pruned:
                    conv.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.sparse(x), self.dense(x)

    def lay_out(self, device: torch.device, channels_last: bool) -> PlainDcil:
        """To the device and the layout, both paths still over one mask each."""
        self.to(device)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        for name in self.pruned:  # Module.to keeps Parameters one, but copies a buffer twice
            layer = name.removesuffix(".weight")
            self.dense.get_submodule(layer).mask = self.sparse.get_submodule(layer).mask
        return self

    @torch.no_grad()
    def refresh(self, sparsity: float) -> None:
        """One threshold over all masked weights, by torch.kthvalue."""
        layers = [self.sparse.get_submodule(name.removesuffix(".weight")) for name in self.pruned]
        scores = torch.cat([layer.weight.abs().flatten() for layer in layers])
        threshold = scores.kthvalue(max(int(scores.numel() * sparsity), 1)).values
        for layer in layers:
            layer.mask.copy_(layer.weight.abs() > threshold)


def dcil_loss(y_sparse: Tensor, y_dense: Tensor, target: Tensor, t: float = 2.0) -> Tensor:
    """CE on both paths, and KL both ways the teacher held still; logits in float32 or wider."""
    loss = F.cross_entropy(y_sparse, target) + F.cross_entropy(y_dense, target)
    for student, teacher in ((y_sparse, y_dense), (y_dense, y_sparse)):
        log_p = F.log_softmax(student / t, dim=1)
        q = F.log_softmax(teacher.detach() / t, dim=1)
        loss = loss + t * t * F.kl_div(log_p, q, reduction="batchmean", log_target=True)
    return loss
