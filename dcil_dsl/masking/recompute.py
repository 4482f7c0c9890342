"""torch.utils.checkpoint inside a model: its function runs once and keeps its activations.

In:   nothing; what is called while `run_through` is open.
Out:  the numbers and gradients that checkpoint gives, without its second run.
Not:  no activation is saved; `--checkpoint-activations` does that for the whole graph.

checkpoint runs its function again in the backward pass. By then a module that ran with the weights
of one path has its own weights back, so the second run would compute with those. It also has no
place in a graph that fx traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor, fx
from torch.overrides import handle_torch_function
from torch.utils import checkpoint as library

_open = 0  # how many `run_through` are


def runs_through() -> bool:
    """Whether a `run_through` is open; torch.compile compiles anew where that differs."""
    return _open > 0


@contextmanager
def run_through() -> Iterator[None]:
    """While open, torch.utils.checkpoint, in each of its variants, calls its function and no more.

    The functions themselves are imported by name everywhere, so what they look up when they are
    called is replaced: in torch 2.9 to 2.14 each variant comes to one of these.
    """
    function, missing = library.CheckpointFunction, object()
    changes = [
        (library, "_checkpoint_hook", lambda frame: nullcontext()),  # would drop what is saved
        (library, "_get_autocast_kwargs", lambda *args, **kwargs: ({}, {})),  # of the second run
        (function, "apply", _reentrant),
    ]
    saver = getattr(library, "_NoopSaveInputs", None)  # torch 2.9 has it
    if saver is not None:
        changes.append((saver, "apply", lambda *args: SimpleNamespace(grad_fn=True)))
    kept = [(owner, name, vars(owner).get(name, missing)) for owner, name, _ in changes]
    global _open
    _open += 1
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        _open -= 1
        for owner, name, value in kept:
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def compiled(function: Callable, **settings) -> Callable:
    """torch.compile, for a function that calls models.

    In a graph of torch.compile a checkpoint is right, as the weights are inputs of that graph. What
    it leaves to Python, after a graph break, has to run through.
    """
    fast = torch.compile(function, **settings)

    def call(*args, **kwargs):
        with run_through():
            return fast(*args, **kwargs)

    return call


def left_to_python() -> Callable:
    """(function, ...) -> function(...), which runs through checkpoints under torch.compile too.

    torch.compile ends its graph at the call, and begins another one within it: of a graph that is
    already being traced nobody can say whether all of it will be one.
    """

    def call(function: Callable, *args: object, **kwargs: object) -> object:
        with run_through():
            return function(*args, **kwargs)

    return torch.compiler.disable(call, recursive=False)


def _reentrant(function, preserve_rng_state: bool, *args) -> object:
    outputs = function(*args)
    if isinstance(outputs, tuple):
        return tuple(as_reentrant(output, *args) for output in outputs)
    return as_reentrant(outputs, *args)


def as_reentrant(output: object, *inputs: object) -> object:
    """The output as the reentrant variant gives it: without a gradient where no input has one.

    That variant computes the output under no_grad, and asks its inputs alone, not the weights that
    its function reads, whether there is a gradient.
    """
    proxies = [value for value in (output, *inputs) if isinstance(value, fx.Proxy)]
    if proxies:
        return handle_torch_function(as_reentrant, proxies, output, *inputs)
    learns = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    return output if learns or not isinstance(output, Tensor) else output.detach()
