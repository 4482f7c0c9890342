"""Patch torch, Python and einops while a forward is traced, so that they take proxies.

In:   a tracer.
Out:  `following(tracer)`, a context that undoes its patches at the end.
Not:  no activation checkpointing (inner_checkpoints.py).
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from dcil_dsl.model.guards import Decisions
from dcil_dsl.model.proxies import LEN, PROXIES, Attribute, Proxy, ProxyTracer, Unfollowed

is_autocast_enabled: Any = torch.is_autocast_enabled
IS_TENSOR, ISINSTANCE, CALLABLE = torch.is_tensor, isinstance, callable
# Methods of a tensor that depend on no number in it; `__get__` is that of all its attributes.
QUESTIONS = frozenset(
    "__get__ __hash__ __len__ size dim ndimension numel nelement stride is_contiguous get_device "
    "element_size storage_offset is_floating_point is_complex is_signed is_inference".split()
)
# Functions of torch that read a size or a type and do not take a proxy for it.
TAKE_NO_PROXY = ("ones", "zeros", "empty", "tensor", "finfo")


@contextmanager
def following(tracer: ProxyTracer) -> Iterator[None]:
    """While the `with` is open, `tracer` can follow a forward: functions take proxies."""
    with no_autocast(tracer.decisions), no_backward(), taking_proxies(tracer), in_einops():
        with NoOwnWeights(tracer):
            yield


class NoOwnWeights(TorchFunctionMode):
    """Do not follow a forward that computes with a weight or buffer itself, not with its proxy.

    Attributes of modules are proxies; `parameters()`, `state_dict()` and `_parameters` are not.
    The value would be a constant of the graph: the same in all paths, and at all steps.
    """

    def __init__(self, tracer: ProxyTracer):
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.decisions.running:
            return func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        names = [self.tracer.names[id(x)] for x in leaves if id(x) in self.tracer.names]
        if not names or any(ISINSTANCE(leaf, fx.Proxy) for leaf in leaves):
            return func(*args, **kwargs)
        if func.__name__ in QUESTIONS:
            result = func(*args, **kwargs)
            if not ISINSTANCE(result, Tensor):
                return result
        raise Unfollowed(f"it uses `{names[0]}` where a tracer does not see it")


@contextmanager
def no_autocast(decisions: Decisions) -> Iterator[None]:
    """Do not follow a forward that sets autocast, or asks for the autocast of its caller."""
    library: Any = torch
    kept: Any = torch.autocast.__enter__

    def enter(self: torch.autocast) -> Any:
        if decisions.running:
            return kept(self)
        raise Unfollowed("it sets autocast, which a graph does not keep")

    def ask(*args: Any) -> Any:
        if decisions.running:
            return is_autocast_enabled(*args)
        raise Unfollowed("it asks for autocast, which may differ from call to call")

    library.autocast.__enter__, library.is_autocast_enabled = enter, ask
    try:
        yield
    finally:
        library.autocast.__enter__, library.is_autocast_enabled = kept, is_autocast_enabled


@contextmanager
def no_backward() -> Iterator[None]:
    """Do not follow a torch.autograd.Function: a graph would lose its backward."""
    base: Any = torch.autograd.Function
    kept = vars(base)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            raise Unfollowed(f"it calls {cls.__name__}, whose backward a graph does not keep")
        return kept.__get__(None, cls)(*args, **kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = kept


@contextmanager
def taking_proxies(tracer: ProxyTracer) -> Iterator[None]:
    """Make torch.ones(x.shape[0], 4), torch.finfo(x.dtype) and len(x) calls of the graph.

    A proxy for a known tensor is an instance of Tensor and is not callable.
    """

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(arg, fx.Proxy) for arg in [*args, *kwargs.values()]):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def length(value: Any) -> Any:
        if isinstance(value, fx.Proxy) and tracer.decisions.is_tensor(value.node):
            return tracer.create_proxy("call_function", LEN, (value,), {})
        return LEN(value)

    def known_tensor(value: Any) -> bool:
        # Not a weight: code would compare its type with that of the input next, and autocast
        # changes that.
        return value.node.op != "get_attr" and tracer.decisions.is_tensor(value.node)

    def is_tensor(value: Any) -> bool:
        return known_tensor(value) if type(value) in PROXIES else IS_TENSOR(value)

    def is_instance(value: Any, kinds: Any) -> bool:
        if ISINSTANCE(value, kinds) or type(value) not in PROXIES:
            return ISINSTANCE(value, kinds)
        if sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            return False  # of its own functions, some ask a tensor for its device next
        return (kinds is Tensor or type(kinds) is tuple and Tensor in kinds) and known_tensor(value)

    def is_callable(value: Any) -> bool:
        return CALLABLE(value) and not (type(value) is Proxy and known_tensor(value))

    library: Any = torch
    python: Any = builtins
    kept: dict[str, Any] = {name: getattr(torch, name) for name in (*TAKE_NO_PROXY, "is_tensor")}
    for name in TAKE_NO_PROXY:
        setattr(torch, name, taking(kept[name]))
    library.is_tensor = is_tensor
    python.len, python.isinstance, python.callable = length, is_instance, is_callable
    try:
        yield
    finally:
        python.len, python.isinstance, python.callable = LEN, ISINSTANCE, CALLABLE
        for name, function in kept.items():
            setattr(torch, name, function)


@contextmanager
def in_einops() -> Iterator[None]:
    """Let einops, if it is loaded, take proxies for tensors; it looks up their type."""
    module: Any = sys.modules.get("einops._backends")
    if module is None:
        yield
        return
    backend = module.TorchBackend()
    # A list: einops would cache a tuple of sizes.
    backend.shape = lambda x: [x.shape[i] for i in range(x.ndim)]
    backend.is_float_type = lambda x: x.is_floating_point()
    kinds = dict.fromkeys((Proxy, Attribute), backend)
    module._type2backend.update(kinds)
    try:
        yield
    finally:
        for kind in kinds:
            module._type2backend.pop(kind, None)
