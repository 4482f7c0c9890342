"""What the command line says of the machine, as opposed to the recipe.

In:   a device, a precision, a memory layout, a limit of steps.
Out:  Options; autocast for them.
Not:  nothing here changes what a step means but its rounding.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.distributed import Ranks

# Settings of Train that make a step of one batch, from gradients that no scaler has scaled.
OWN_STEPS = ("integrator", "balance")
DEFAULT, REDUCE_OVERHEAD = COMPILE_MODES = ("default", "reduce-overhead")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """precision None: the recipe's. max_steps: the run ends after so many steps in all.

    anyway  the checkpoint of another plan will do (adopt.py)
    shard   each rank has a part of every weight, not all of them (sharding.py)
    on_nan  what becomes of a run whose loss is not finite: its end, or back with a lower rate
            (rewind.py)
    checkpoint_activations  are computed again for the backward pass
    evaluate_every  the held-out data are gone through every so many epochs, and at the end
    compile_mode  of torch.compile; reduce-overhead records the step once as CUDA graphs and
            replays it
    """

    device: str | torch.device = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    compile: bool = False
    channels_last: bool = False
    max_steps: int | None = None
    resume: bool = False
    anyway: bool = False
    ranks: Ranks = Ranks()
    shard: bool = False
    on_nan: Literal["stop", "rewind"] = "stop"
    checkpoint_activations: bool = False
    evaluate_every: int = 1
    compile_mode: str = DEFAULT


def keep_freed_memory() -> bool:
    """Have this whole process keep the memory that it frees; True if the C library listens.

    A step on a CPU frees all its activations, and the next asks for as much again. glibc gives
    what is large back to the system in between, which then has to clear it page by page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    return all([mallopt(trim_threshold, -1), mallopt(mmap_max, 0), mallopt(top_pad, 256 << 20)])


def precision_of(plan: Plan, options: Options) -> str:
    """The command line's precision, else the recipe's."""
    return options.precision or plan.train.precision


def check_own_steps(plan: Plan, options: Options) -> None:
    """InputError where the recipe makes its steps in a way that this machine's options break."""
    if plan.train.average is not None and precision_of(plan, options) == "fp16":
        raise InputError(
            "`average` of the recipe's `train` does not go with fp16",
            help="--precision bf16 scales no gradient",
        )
    word = next((name for name in OWN_STEPS if getattr(plan.train, name) is not None), None)
    if word is None:
        return
    integrator = plan.train.integrator
    ours = integrator is None or integrator.origin is None
    if options.shard and not ours:
        raise InputError(
            f"`{integrator.called}` is given whole gradients, which --shard parts",
            help="run it without --shard",
        )
    if options.ranks.count > 1 and word == "balance":
        raise InputError(
            f"`{word}` of the recipe's `train` is for one process, and there are "
            f"{options.ranks.count}",
            help="run it without torchrun",
        )
    if precision_of(plan, options) == "fp16" or plan.train.accumulate > 1:
        raise InputError(
            f"`{word}` of the recipe's `train` goes with neither fp16 nor `accumulate`",
            help="--precision bf16 scales no gradient",
        )


def peak_memory(device: str | torch.device) -> int | None:
    """The most bytes that tensors of this process took at a time on a CUDA device, from its start.

    None where nobody counts: on a CPU.
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

    Not module.to(memory_format=...), which ends where one has five: a 3-d convolution among others.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
