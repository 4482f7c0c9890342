"""Attention as one kernel, where torch has scaled_dot_product_attention.

In:   the call of a program: query, key, value, perhaps a mask.
Out:  the output that torch computes, [N, H, L, E] in the layout [N, L, H, E].
Not:  no weights, so no zeros: it only keeps a pruned transformer from waiting for its attention.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcil_dsl.extras.cpu.build import Library
from dcil_dsl.extras.cpu.steps import TorchCall, Values, at
from dcil_dsl.extras.cpu.structs import Attention

FUNCTION = "aten.scaled_dot_product_attention.default"
MOST_KEYS = 2**14
VECTORS = 2  # of queries in a tile, as in kernels.c


class _Call(NamedTuple):
    """The arguments of torch's function, in its order."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


class AttentionCall(TorchCall):
    """A call that the kernel computes where it can, and torch elsewhere."""

    def __init__(self, call: TorchCall, library: Library, threads: int):
        super().__init__(call.function, call.args, call.kwargs, call.outputs, call.place)
        self.library, self.threads = library, threads

    def run(self, values: Values) -> None:
        args, kwargs = self.filled(values)
        call = _Call(*args, **kwargs)
        (place,) = self.outputs
        if place is None or not self._fits(call):
            super().run(values)
        else:
            values[place] = self._compute(call)

    def _fits(self, call: _Call) -> bool:
        tensors = (call.query, call.key, call.value)
        if not all(
            isinstance(x, Tensor)
            and x.dtype == torch.float32
            and x.dim() == 4
            and x.layout == torch.strided
            and x.numel()
            for x in tensors
        ):
            return False
        (n, h, _, inner), (_, _, keys, _), (_, _, _, outer) = (x.shape for x in tensors)
        mask = call.attn_mask
        return (
            call.key.shape == (n, h, keys, inner)
            and call.value.shape == (n, h, keys, outer)
            and min(inner, outer) >= self.library.lanes
            and keys <= MOST_KEYS
            and not call.dropout_p
            and not (call.is_causal and mask is not None)
            and (mask is None or mask.dtype in (torch.bool, torch.float32))
            and (mask is None or 2 <= mask.dim() <= 4)
        )

    def _compute(self, call: _Call) -> Tensor:
        query, key, value = (
            x if x.stride(3) == 1 else x.contiguous() for x in (call.query, call.key, call.value)
        )
        n, h, queries, inner = query.shape
        keys, outer = key.shape[2], value.shape[3]
        tile = VECTORS * self.library.lanes
        out = torch.empty(n, queries, h, outer).transpose(1, 2)
        mask = _added(call, n, h, queries, keys, tile)
        strides = () if mask is None else mask.stride()[:3]
        scratch = torch.empty(self.threads * (inner + keys + outer) * tile)
        sizes = (n, h, queries, keys, inner, outer)
        rows = [stride for x in (query, key, value, out) for stride in x.stride()[:3]]
        scale = 1 / math.sqrt(inner) if call.scale is None else call.scale
        struct = Attention(*sizes, *rows, *strides)
        self.library.functions.dcil_attention(
            at(struct),
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            None if mask is None else mask.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            scale,
            self.threads,
        )
        return out


def _added(call: _Call, n: int, h: int, queries: int, keys: int, tile: int) -> Tensor | None:
    """What is added to the scores, [N, H, keys, queries]; None for nothing.

    A tile of queries may reach beyond the last one, so each row is longer by a tile.
    """
    mask: Any = call.attn_mask
    if call.is_causal:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    if mask is None or (mask.dtype == torch.bool and bool(mask.all())):
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    while mask.dim() < 4:
        mask = mask[None]
    own = mask.expand(*mask.shape[:2], queries, keys).transpose(2, 3)
    padded = torch.zeros(*own.shape[:3], queries + tile)
    padded[..., :queries] = own
    return padded.expand(n, h, -1, -1)
