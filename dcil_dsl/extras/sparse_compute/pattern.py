"""A linear layer of a 2:4 weight, its forward product on the device's sparse tensor cores.

In:   a layer, the view of its weight, the mask, the input.
Out:  what the whole layer gives, but for rounding; all gradients of the whole layer.
Not:  no weight is left out of the backward pass. What the cores can do: tensor_cores.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from dcil_dsl.extras.sparse_compute.tensor_cores import Product, multiply, why_whole
from dcil_dsl.masking.units import holds_half
from dcil_dsl.model.calls import apply_layer, is_plain_forward

CAST = frozenset({torch.float32, torch.bfloat16, torch.float16})  # what autocast casts


def apply_pattern(
    module: nn.Module, parameters: dict[str, Tensor], mask: Tensor, x: Tensor
) -> Tensor:
    """`apply_layer(module, parameters, x)` of a weight (O, I) that is zero where `mask` is false.

    By sparse tensor cores where they run it, where they were found to give the dense product,
    and while the mask keeps no more than two of every four inputs; else in full. The weight is
    compressed at each call, as it changes at each step. In full also under torch.compile, which
    would leave its graph to read a mask, and for fake tensors and other subclasses of Tensor.
    """
    weight, bias = parameters["weight"], parameters.get("bias")
    dtype = None if torch.compiler.is_compiling() else _computed_in(x, weight)
    if dtype is None or not is_plain_forward(module) or x.shape[-1:] != weight.shape[1:]:
        return _whole(module, parameters, x)
    product = Product(x.device, dtype, tuple(weight.shape), bias is not None)
    if x.numel() == 0 or why_whole(product) or not holds_half(mask):
        return _whole(module, parameters, x)
    operands = (None if tensor is None else tensor.to(dtype) for tensor in (x, weight, bias))
    y: Tensor = PatternProduct.apply(*operands)
    return y


def _whole(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    y: Tensor = apply_layer(module, parameters, x)
    return y


class PatternProduct(torch.autograd.Function):
    """The product by a matrix whose rows hold two of every four, all three in one type.

        forward    y  = x v^T + b                                sparse: v is compressed
        backward   dx = dy v,   dv = dy^T x,   db = sum of dy    dense, as of any linear layer

    Straight through to v: what is zero in it has its gradient, too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, v)
        rows = x.detach().reshape(-1, x.shape[-1])
        y = multiply(rows, v.detach(), None if b is None else b.detach())
        return y.view(*x.shape[:-1], v.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, v = ctx.saved_tensors
        for_x, for_v, for_b = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = (rows @ v).view(x.shape) if for_x else None
        dv = rows.t() @ x.reshape(-1, x.shape[-1]) if for_v else None
        return dx, dv, rows.sum(0) if for_b else None


def _computed_in(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type of the whole product: autocast's, where it is on; None where the two have none."""
    types, device = {x.dtype, weight.dtype}, x.device.type
    if type(x) not in (Tensor, nn.Parameter):
        return None
    if is_autocast_available(device) and torch.is_autocast_enabled(device) and types <= CAST:
        return torch.get_autocast_dtype(device)
    return x.dtype if len(types) == 1 else None
