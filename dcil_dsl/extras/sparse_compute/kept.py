"""A layer's computation with its kept filters, or kept input channels, alone.

In:   a layer, the view of its weight, the mask, the inputs.
Out:  what the whole layer would give: a pruned filter gives its bias, a pruned channel nothing.
Not:  no gradient for what is left out; the plan lets no path learn pruned weights this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dcil_dsl.model.calls import apply_layer, is_plain_forward

# Of each mask: how often it had been changed, the axis, and what was kept along it.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def apply_kept(
    module: nn.Module, parameters: dict[str, Tensor], mask: Tensor, axis: int, x: Tensor
) -> Tensor:
    """`apply_layer(module, parameters, x)` of a weight that is zero where `mask` is false.

        axis 0    y = b,  y[:, keep] = f(x, v[keep], b[keep])     filters, rows of a matrix
        axis 1    y = f(x[:, keep], v[:, keep], b)                input channels, columns

    keep: where the mask keeps any weight along the axis. Gradients are those of the whole
    product, but for the weights that are left out, whose gradient is zero. A layer of another
    forward than torch.nn's own, or with hooks, which would see other shapes, is computed in full;
    so is one under torch.compile, which would compile anew whenever the count changes.
    """
    if torch.compiler.is_compiling() or not is_plain_forward(module):
        return _whole(module, parameters, x)
    is_linear = type(module).forward is nn.Linear.forward
    keep = kept_along(mask, axis)
    if not 0 < len(keep) < mask.shape[axis]:
        return _whole(module, parameters, x)
    weight, bias = parameters["weight"].index_select(axis, keep), parameters.get("bias")
    # Of a batch of images the channels stand second, of a single one first.
    channels = x.dim() - (1 if is_linear else weight.dim() - 1)
    convolve: Any = module._conv_forward if not is_linear else None
    compute: Callable[..., Tensor] = F.linear if is_linear else convolve
    if axis == 1:
        return compute(_select(x, keep, channels), weight, bias)
    part = compute(x, weight, None if bias is None else bias.index_select(0, keep))
    return _spread(part, keep, mask.shape[0], channels, bias)


def _whole(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    y: Tensor = apply_layer(module, parameters, x)
    return y


def kept_along(mask: Tensor, axis: int) -> Tensor:
    """The indices along `axis` at which the mask keeps anything, in order.

    Counted once for each change of the mask: only then does the host wait for the device.
    """
    known: tuple[int, int, Tensor] | None = _known.get(mask)
    if known is None or known[:2] != (mask._version, axis):
        others = [i for i in range(mask.dim()) if i != axis]
        keep = mask.any(others).nonzero().flatten() if others else mask.nonzero().flatten()
        known = _known[mask] = (mask._version, axis, keep)
    return known[2]


def _select(x: Tensor, keep: Tensor, axis: int) -> Tensor:
    """x.index_select(axis, keep), laid out in memory as x is."""
    if not _has_channels_last(x):
        return x.index_select(axis, keep)
    return x.movedim(axis, -1).index_select(-1, keep).movedim(-1, axis)


def _spread(part: Tensor, keep: Tensor, size: int, axis: int, bias: Tensor | None) -> Tensor:
    """Each slice of `part` at its place among `size`, the bias elsewhere; laid out as `part` is."""
    if _has_channels_last(part):
        return _spread(part.movedim(axis, -1), keep, size, part.dim() - 1, bias).movedim(-1, axis)
    shape = [size if i == axis else n for i, n in enumerate(part.shape)]
    if bias is None:
        return part.new_zeros(shape).index_copy(axis, keep, part)
    column = bias.to(part.dtype).view(-1, *[1] * (part.dim() - 1 - axis))
    return column.expand(shape).contiguous().index_copy(axis, keep, part)


def _has_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()
