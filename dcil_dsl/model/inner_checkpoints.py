"""Replace torch.utils.checkpoint inside a model: its function runs once and keeps activations.

In:   calls of a model while `run_through` is open.
Out:  the numbers and gradients of checkpoint, without the second run of its function.
Not:  no activations saved; `--checkpoint-activations` does that for the whole graph.

checkpoint runs its function again in the backward pass. A module that ran with the weights of one
path has its own weights again by then, so the second run would compute with wrong weights. Besides,
fx cannot trace a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

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

    Models import these functions by name, so what the functions look up when called is replaced:
    in torch 2.9 to 2.14 each variant calls one of these.
    """
    function, missing = library.CheckpointFunction, object()
    changes: list[tuple[Any, str, Any]] = [
        (library, "_checkpoint_hook", lambda frame: nullcontext()),  # would drop activations
        (library, "_get_autocast_kwargs", lambda *args, **kwargs: ({}, {})),  # for the second run
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


def compiled(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """torch.compile, for a function that calls models.

    A checkpoint in a graph of torch.compile is right: the weights are inputs of that graph. A
    checkpoint that runs in Python, after a graph break, needs `run_through`.
    """
    fast = torch.compile(function, **settings)

    def call(*args: Any, **kwargs: Any) -> Any:
        with run_through():
            return fast(*args, **kwargs)

    return call


def left_to_python() -> Callable[..., Any]:
    """(function, ...) -> function(...), which runs through checkpoints under torch.compile too.

    torch.compile ends its graph at the call, and begins another one within it: of a graph that is
    already being traced nobody can say whether all of it will be one.
    """

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with run_through():
            return function(*args, **kwargs)

    disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
    return disable(call, recursive=False)


def _reentrant(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> object:
    outputs = function(*args)
    if isinstance(outputs, tuple):
        return tuple(as_reentrant(output, *args) for output in outputs)
    return as_reentrant(outputs, *args)


def as_reentrant(output: object, *inputs: object) -> object:
    """The output as of the reentrant variant: detached if no input requires a gradient.

    That variant runs under no_grad and ignores the weights that its function reads.
    """
    proxies = [value for value in (output, *inputs) if isinstance(value, fx.Proxy)]
    if proxies:
        traced: object = handle_torch_function(as_reentrant, proxies, output, *inputs)
        return traced
    learns = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    return output if learns or not isinstance(output, Tensor) else output.detach()
