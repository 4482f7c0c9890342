"""What a dual graph keeps beside its weights: taken down, and put back after a trial.

In:   a dual graph.
Out:  its running statistics, scores and the like as they were.
Not:  no weights, and no masks, which no step moves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dcil_dsl.compiler.dual import Dual


def copied_buffers(dual: Dual) -> dict[str, Tensor]:
    """Copies by name."""
    masks = {id(mask) for mask in dual.masks.values()}
    return {n: b.clone() for n, b in dual.named_buffers() if id(b) not in masks}


@torch.no_grad()
def put_back_buffers(dual: Dual, copies: Mapping[str, Tensor]) -> None:
    """In place, so that a compiled step keeps reading the same tensors."""
    for name, buffer in dual.named_buffers():
        if name in copies:
            buffer.copy_(copies[name])
