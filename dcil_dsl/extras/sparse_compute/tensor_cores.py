"""The sparse tensor cores of a device: a product by a 2:4 matrix, and whether it may be trusted.

In:   a device, a type, the shape of a weight; the operands of a linear layer.
Out:  why the layer is to be computed in full, "" where it need not be; the product.
Not:  no gradients and no masks (pattern.py). The plan says which layers use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = (8, 0)  # the compute capability from which on NVIDIA's GPUs have them
TYPES = (torch.bfloat16, torch.float16)
ALIGNED = 16  # bytes at a multiple of which the kernels read
# As many rows of an input a check takes: a multiple of the kernels' 8, and one that is padded.
CHECKED_ROWS = (64, 13)


class Product(NamedTuple):
    """y = x w^T + b with w of `shape`, (outputs, inputs), everything in `dtype` on `device`."""

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]
    has_bias: bool


@dataclass(frozen=True)
class Cores:
    """obstacle  why no product of that type runs on that device, "" where one may
    multiply  x (N, I), w (O, I) of which every four inputs hold two, b (O,) or None -> (N, O)
    known     of each product that was asked for, why it is computed in full; "" where it is not
    """

    obstacle: Callable[[torch.device, torch.dtype], str]
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    known: dict[Product, str] = field(default_factory=dict)


def cuda_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why NVIDIA's sparse tensor cores do not run a product of this type on the device, or ""."""
    if device.type != "cuda" or torch.version.cuda is None:
        name = {"cpu": "a CPU", "cuda": "a GPU of another maker"}.get(
            device.type, f"`{device.type}`"
        )
        return f"the device is {name}, which has no sparse tensor cores"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST:
        name = torch.cuda.get_device_name(device)
        return f"{name} has no sparse tensor cores: compute capability {found[0]}.{found[1]}"
    if dtype not in TYPES:
        return f"sparse tensor cores take bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    return ""


def cuda_multiply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The product by torch.sparse's cuSPARSELt or CUTLASS kernel, w compressed at each call.

    cuSPARSELt ignores strides and offsets: it would silently misread an x that is not a contiguous
    matrix. What it gives is a transposed matrix before torch 2.14, and is laid out
    as the whole product's here.
    """
    x, w, b = _as_it_is_read(x), _as_it_is_read(w), None if b is None else _as_it_is_read(b)
    with torch.autocast(x.device.type, enabled=False):  # they are of the type already
        return F.linear(x, torch.sparse.to_sparse_semi_structured(w), b).contiguous()


def _as_it_is_read(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNED else tensor


CORES = Cores(cuda_obstacle, cuda_multiply)


def why_whole(product: Product) -> str:
    """Why the device's cores are not used for the product, "" where they are.

    The first time a product is asked for it is tried, and compared with the dense one.
    """
    if product not in CORES.known:
        CORES.known[product] = CORES.obstacle(product.device, product.dtype) or _tried(product)
    return CORES.known[product]


@torch.no_grad()
def multiply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """(N, O) of x (N, I), a 2:4 w (O, I) and b (O,), all of one type.

    A kernel that fails after it was tried is not used again: the product is dense from then on.
    """
    product = Product(x.device, x.dtype, tuple(w.shape), b is not None)
    try:
        return CORES.multiply(x, w, b)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel says that does not run this one
        CORES.known[product] = _in_words(error)
        return F.linear(x, w, b)


@torch.no_grad()
def _tried(product: Product) -> str:
    """Why the product of made operands is not what it should be, "" where it is.

    The weight has all six patterns, and groups of less than two. bf16 and fp16 are exact in
    float32 and in TF32, so that the reference is off by its sums alone; what the cores give is
    rounded once more. A wrong place of a single weight is far beyond both.
    """
    device, dtype, (outputs, inputs), has_bias = product
    generator = torch.Generator(device).manual_seed(0)  # not the one that a step draws from

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    try:
        places = draw(outputs, inputs // 4, 4).float().topk(2, dim=2).indices
        w = torch.zeros(outputs, inputs // 4, 4, dtype=dtype, device=device)
        w.scatter_(2, places, draw(outputs, inputs // 4, 2).relu())
        w, b = w.view(outputs, inputs), draw(outputs) if has_bias else None
        for rows in CHECKED_ROWS:
            x = draw(rows, inputs)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the warning that it is a prototype
                found = CORES.multiply(x, w, b)
            with torch.autocast(device.type, enabled=False):
                exact = F.linear(_wider(x), _wider(w), None if b is None else _wider(b))
            if found.shape != exact.shape or found.dtype != dtype:
                return f"its product is {found.dtype} of {tuple(found.shape)}"
            far = (_wider(found) - exact).abs().max().item()
            limit = 2 * torch.finfo(dtype).eps * exact.abs().max().item()
            if not far <= limit:  # a NaN is not
                return f"its product is off by {far:.2g}, where rounding explains {limit:.2g}"
    except Exception as error:  # whatever a kernel says that does not run here
        return _in_words(error)
    return ""


def _wider(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in TYPES else tensor


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"its kernel failed: {lines[0] if lines else type(error).__name__}"
