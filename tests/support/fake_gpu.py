"""Work on a GPU that does not exist: where the host would wait for it.

In:   work that asks for the device "cuda".
Out:  Waits: the places of the package at which the host reads a number from the device or sends it
      one that is not pinned. An operation on tensors of both sides raises, as it does on a GPU.
Not:  no numbers. What is on the device is fake, with a shape and a device alone; what is on the CPU
      is real. No streams, and no backward pass, for which autograd asks the driver.
"""

import multiprocessing
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS_ALONE = ("aten._fused_", "aten._amp_")  # of optimizers and scalers, without shape rules


def elsewhere(function, *arguments):
    """What it returns in a process of its own.

    After a fake tensor on a GPU, autograd starts threads for that GPU with the next backward pass,
    and a process that has them cannot fork ranks any more.
    """
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        return pool.submit(function, *arguments).result()


class Waits(TorchDispatchMode):
    """places: how often the host waited, by where it did. Each number that it reads is a one."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = pytree.tree_leaves((args, kwargs))
        tensors = [x for x in given if isinstance(x, Tensor)]
        asks = any(isinstance(x, torch.device) and x.type == "cuda" for x in given)
        if not asks and not any(isinstance(x, FakeTensor) for x in tensors):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if str(function).startswith(KERNELS_ALONE):
            assert {x.device.type for x in tensors} == {"cuda"}, function
            return args[0] if "update_scale" in str(function) else None
        try:
            made = function(*args, **kwargs)
        except DataDependentOutputException:
            self.places[_place()] += 1
            return 1
        here = {x.device.type for x in tensors}
        there = {x.device.type for x in pytree.tree_leaves(made) if isinstance(x, Tensor)}
        is_sent = here == {"cpu"} and "cuda" in there
        is_pinned = kwargs.get("non_blocking") and all(hasattr(x, "pinned") for x in tensors)
        if (is_sent and not is_pinned) or ("cuda" in here and "cpu" in there):
            self.places[_place()] += 1
        return made


def _place() -> str:
    frames = traceback.extract_stack()
    last = ([f for f in frames if "/dcil_dsl/" in f.filename] or frames)[-1]
    return f"{last.filename.rpartition('/dcil_dsl/')[2]}: {last.line}"


@contextmanager
def fake_gpu(dual: nn.Module | None = None):
    """Within it "cuda" is a GPU of fake tensors, and all has `dual` on the CPU so far.

    To be entered in a process that ends with the test: it leaves torch changed.
    """
    for module in (torch.amp.autocast_mode, torch.amp.grad_scaler, torch.cuda.amp.common):
        if hasattr(module, "amp_definitely_not_available"):
            module.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *more, **settings: True
    Tensor.pin_memory = _pinned
    nn.Module._apply = _moved
    if dual is not None:
        Tensor.backward = lambda loss, *more, **settings: _ones(dual)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.autograd.set_multithreading_enabled(False), fake, Waits() as waits:
        yield waits


def _pinned(tensor: Tensor) -> Tensor:
    tensor.pinned = True
    return tensor


def _moved(module: nn.Module, change, recurse: bool = True) -> nn.Module:
    """Module._apply, which would put what is fake where real tensors were, and cannot."""
    for child in module.children():
        _moved(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _ones(dual: nn.Module) -> None:
    for parameter in dual.parameters():
        if parameter.requires_grad:
            one = torch.ones_like(parameter)
            parameter.grad = one if parameter.grad is None else parameter.grad + one
