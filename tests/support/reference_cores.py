"""Sparse tensor cores on a CPU: a product that sees two of every four, in place of the kernel.

In:   nothing.
Out:  cores that take any device and type, and count how often they are asked.
Not:  no test, and no speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcil_dsl.extras.sparse_compute.tensor_cores import Cores


def halved(w: Tensor) -> Tensor:
    """w (O, I), but of every four in a row the two largest alone: what a kernel can hold."""
    fours = w.view(w.shape[0], -1, 4)
    places = fours.abs().topk(2, dim=2).indices
    return torch.zeros_like(fours).scatter(2, places, fours.gather(2, places)).view_as(w)


def reference_cores(calls: list | None = None) -> Cores:
    """calls: where the shapes (N, I), (O, I) of each product are recorded."""

    def multiply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert not torch.is_grad_enabled() and x.dim() == w.dim() == 2
        assert {x.dtype} == {tensor.dtype for tensor in (w, b) if tensor is not None}
        if calls is not None:
            calls.append((tuple(x.shape), tuple(w.shape)))
        return F.linear(x, halved(w), b)

    return Cores(lambda device, dtype: "", multiply)
