"""Proxies: stand-ins for values while a forward is traced, and the answers that they get.

In:   a node of the growing graph; Decisions, which know sizes and types.
Out:  Proxy, which a forward takes for a tensor, a size or a number; ProxyTracer, which answers its
      questions and guards the answers; MakeObject, for objects.
Not:  no tracing of modules (tracer.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import immutable_collections as immutable

from dcil_dsl.model.fake_values import UNKNOWN
from dcil_dsl.model.guards import Decisions, guard

LEN = len  # it requires a Python number; len(logits) is a value of the graph


class Unfollowed(RuntimeError):
    """A forward does something that a graph of it would not do."""


class Proxy(fx.Proxy):
    """A proxy that writes in place for `x += y`; fx's own makes a new tensor `x + y`.

    Setting an attribute (output.logits = y) is refused: it would not be in the graph.
    """

    tracer: ProxyTracer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # an unknown protocol, such as __array_struct__
        if name == "_is_param":
            return False  # isinstance(x, nn.Parameter) asks
        rank = self.tracer.rank(self) if name == "ndim" else None
        return Attribute(self, name) if rank is None else rank

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __index__(self) -> int:
        return int(self.tracer.constant(self, int))

    def __int__(self) -> int:
        return int(self.tracer.constant(self, int, float))

    def __float__(self) -> float:
        return float(self.tracer.constant(self, int, float))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Unfollowed(f"it sets `{name}` of a computed value")
        super().__setattr__(name, value)


class Attribute(fx.proxy.Attribute, Proxy):
    """An attribute of a value, such as x.shape and x.dim, whose result may be known."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_rank = self.attr in ("dim", "ndimension") and not args and not kwargs
        rank = self.tracer.rank(self.root) if is_rank else None
        return super().__call__(*args, **kwargs) if rank is None else rank

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("root", "attr", "_node"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class ProxyTracer(fx.Tracer):
    """What a proxy asks its tracer. Sizes and types are known, and each answer is guarded.

    held   the guards, by the node and the function that was asked for
    names  of the parameters and buffers, by the id of the tensor
    """

    def __init__(self, decisions: Decisions, names: Mapping[int, str]):
        super().__init__(autowrap_functions=())
        self.decisions, self.names = decisions, names
        self.held: dict[tuple[fx.Node, str], fx.Node] = {}

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.decisions.of(obj.node)
        if value is UNKNOWN:
            return super().to_bool(obj)
        fact = obj if isinstance(value, bool) else self._call(operator.truth, obj)
        self._call(guard, fact, bool(value), self.decisions.words(obj.node))
        return bool(value)

    def length(self, obj: fx.Proxy) -> int:
        """len(obj), guarded: Python requires a number."""
        value = self.decisions.of(obj.node)
        if not isinstance(value, (tuple, list)):
            raise Unfollowed("it asks for the length of a computed value")
        size = len(value)
        self._guard(obj, LEN, size, f"len({self.decisions.words(obj.node)})")
        return size

    def rank(self, obj: fx.Proxy) -> int | None:
        """The number of dimensions of a tensor, guarded; None: it is not known."""
        value = self.decisions.rank(obj.node)
        if value is not None:
            self._guard(obj, torch.Tensor.dim, value, f"{obj.node.name}.ndim")
        return value

    def constant(self, obj: fx.Proxy, *kinds: type) -> Any:
        """A Python number that follows from sizes which are the same in every call, guarded."""
        value = self.decisions.constant(obj.node)
        if not isinstance(value, kinds):
            raise Unfollowed("it needs a Python number that may differ from call to call")
        self._guard(obj, None, value, self.decisions.words(obj.node))
        return value

    def _guard(
        self, obj: fx.Proxy, function: Callable[..., Any] | None, value: Any, what: str
    ) -> None:
        """Make the graph check that function(obj) is the value."""
        key = (obj.node, getattr(function, "__name__", ""))
        if key not in self.held or self.held[key]._erased:
            fact = obj if function is None else self._call(function, obj)
            self.held[key] = self._call(guard, fact, value, what).node

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.decisions.of(obj.node)
        if not isinstance(value, (tuple, list)):
            return super().iter(obj)
        items: Any = obj
        return iter([items[i] for i in range(self.length(obj))])

    def _call(self, function: Callable[..., Any], *args: Any) -> fx.Proxy:
        return self.create_proxy("call_function", function, args, {})


PROXIES = (Proxy, Attribute)


def _in_place(function: Any) -> Any:
    def write(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split():
    setattr(Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


@dataclass(frozen=True)
class MakeObject:
    """A function of a graph that makes an object of a class with the attributes it is given."""

    kind: type

    @property
    def __name__(self) -> str:
        return f"make_{self.kind.__name__}"

    def __call__(self, attributes: Mapping[str, object]) -> object:
        made: Any = object.__new__(self.kind)
        for name, value in attributes.items():
            if isinstance(value, immutable.immutable_list):
                value = list(value)
            vars(made)[name] = dict(value) if isinstance(value, immutable.immutable_dict) else value
        return made


def is_object(value: object) -> bool:
    """Whether this is an object whose class is Python code and whose state is its attributes."""
    kind = type(value)
    if not hasattr(value, "__dict__") or isinstance(value, (Tensor, nn.Module, type)):
        return False
    if callable(value) or is_dataclass(value) or kind.__module__.split(".")[0] == "torch":
        return False
    slots = any(vars(owner).get("__slots__") for owner in kind.__mro__)
    return kind.__new__ is object.__new__ and not slots
