"""The options that concern the machine rather than the recipe.

In:   RunOptions, the processes of the job, a memory layout.
Out:  Options; autocast for them.
Not:  no option here changes a step beyond its rounding.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import nn

from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.options import RunOptions

REDUCE_OVERHEAD = "reduce-overhead"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """The options of a run on one of its processes.

    device         a device that exists; `auto` has been decided
    ranks          the processes of the job
    channels_last  the memory layout of images and weights
    """

    device: str = "cpu"
    ranks: Ranks = Ranks()
    channels_last: bool = False


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; True if the C library supports it.

    A step on a CPU frees all its activations, and the next one allocates as much again. glibc
    returns large blocks to the system in between, which then clears them page by page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return all([mallopt(trim_threshold, -1), mallopt(mmap_max, 0), mallopt(top_pad, 256 << 20)])


def precision_of(plan: Plan, options: Options) -> str:
    """The command line's precision, else the recipe's."""
    return options.precision or plan.train.precision


def peak_memory(device: str | torch.device) -> int | None:
    """The peak memory of tensors of this process on a CUDA device, in bytes.

    None on a CPU, where it is not counted.
    """
    device = torch.device(device)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def autocast(plan: Plan, options: Options) -> torch.autocast:
    """The context in which a forward runs; fp32 is the absence of autocast."""
    precision = precision_of(plan, options)
    device = torch.device(options.device).type
    return torch.autocast(
        device, dtype=DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES
    )


def laid_out(inputs: Inputs, options: Options) -> Inputs:
    """The inputs in the memory layout of the run; the same tensors where they are in it already."""
    if not options.channels_last:
        return inputs
    return inputs.map(
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    )


@torch.no_grad()
def lay_out_weights(module: nn.Module) -> None:
    """channels_last for every tensor of a module that has four dimensions, in place.

    Not module.to(memory_format=...), which fails on tensors of five dimensions (3-d convolutions).
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
