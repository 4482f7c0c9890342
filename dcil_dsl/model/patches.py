"""What torch, Python and einops are while a forward is traced: they take proxies.

In:   a tracer.
Out:  `following(tracer)`, a context; all is as it was after it.
Not:  no checkpoint of activations (masking/recompute.py).
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dcil_dsl.model.guards import Decisions
from dcil_dsl.model.proxies import PROXIES, Attribute, Proxy, Unfollowed

if TYPE_CHECKING:
    from dcil_dsl.model.tracer import Tracer

is_autocast_enabled = torch.is_autocast_enabled
IS_TENSOR, ISINSTANCE, CALLABLE = torch.is_tensor, isinstance, callable
LEN = len  # which insists on a Python number; len(logits) is to be one of the graph
# Functions of torch that read a size or a type as it stands, and know no proxy for one.
TAKE_NO_PROXY = ("ones", "zeros", "empty", "tensor", "finfo")


@contextmanager
def following(tracer: Tracer) -> Iterator[None]:
    """While it is open, `tracer` may follow a forward: proxies pass for values."""
    with no_autocast(tracer.decisions), no_backward(), taking_proxies(tracer), in_einops():
        yield


@contextmanager
def no_autocast(decisions: Decisions) -> Iterator[None]:
    """A forward that chooses its own precision, or asks for that of its caller, is not followed."""
    kept = torch.autocast.__enter__

    def enter(self):
        if decisions.running:
            return kept(self)
        raise Unfollowed("it sets autocast, which a graph does not keep")

    def ask(*args):
        if decisions.running:
            return is_autocast_enabled(*args)
        raise Unfollowed("it asks for autocast, which may differ from call to call")

    torch.autocast.__enter__, torch.is_autocast_enabled = enter, ask
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.is_autocast_enabled = kept, is_autocast_enabled


@contextmanager
def no_backward() -> Iterator[None]:
    """Of a torch.autograd.Function a graph would have the forward, and not the backward."""
    base = torch.autograd.Function
    kept = vars(base)["apply"]

    def apply(cls, *args, **kwargs):
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            raise Unfollowed(f"it calls {cls.__name__}, whose backward a graph does not keep")
        return kept.__get__(None, cls)(*args, **kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = kept


@contextmanager
def taking_proxies(tracer: Tracer) -> Iterator[None]:
    """torch.ones(x.shape[0], 4), torch.finfo(x.dtype) and len(x) are calls of the graph.

    What is known to be a tensor is an instance of Tensor, and cannot be called.
    """

    def taking(function):
        def call(*args, **kwargs):
            if any(isinstance(arg, fx.Proxy) for arg in [*args, *kwargs.values()]):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def length(value):
        if isinstance(value, fx.Proxy) and tracer.decisions.is_tensor(value.node):
            return tracer.create_proxy("call_function", LEN, (value,), {})
        return LEN(value)

    def known_tensor(value):
        # A weight is asked for its type next, which differs from its input's under autocast.
        return value.node.op != "get_attr" and tracer.decisions.is_tensor(value.node)

    def is_tensor(value):
        return known_tensor(value) if type(value) in PROXIES else IS_TENSOR(value)

    def is_instance(value, kinds):
        if ISINSTANCE(value, kinds) or type(value) not in PROXIES:
            return ISINSTANCE(value, kinds)
        if sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            return False  # of its own functions, some ask a tensor for its device next
        return (kinds is Tensor or type(kinds) is tuple and Tensor in kinds) and known_tensor(value)

    def is_callable(value):
        return CALLABLE(value) and not (type(value) is Proxy and known_tensor(value))

    kept = {name: getattr(torch, name) for name in TAKE_NO_PROXY} | {"is_tensor": IS_TENSOR}
    for name in TAKE_NO_PROXY:
        setattr(torch, name, taking(kept[name]))
    torch.is_tensor = is_tensor
    builtins.len, builtins.isinstance, builtins.callable = length, is_instance, is_callable
    try:
        yield
    finally:
        builtins.len, builtins.isinstance, builtins.callable = LEN, ISINSTANCE, CALLABLE
        for name, function in kept.items():
            setattr(torch, name, function)


@contextmanager
def in_einops() -> Iterator[None]:
    """einops, where it is loaded, takes proxies for tensors of torch; it looks up their type."""
    module = sys.modules.get("einops._backends")
    if module is None:
        yield
        return
    backend = module.TorchBackend()
    # A list, as einops would keep a tuple of sizes in a cache.
    backend.shape = lambda x: [x.shape[i] for i in range(x.ndim)]
    backend.is_float_type = lambda x: x.is_floating_point()
    kinds = dict.fromkeys((Proxy, Attribute), backend)
    module._type2backend.update(kinds)
    try:
        yield
    finally:
        for kind in kinds:
            module._type2backend.pop(kind, None)
