"""What stands for a value while a forward is traced.

In:   a node of the growing graph; its tracer, which knows what the graph may be held to.
Out:  Proxy, which a forward takes for a tensor, a size or a number; MakeObject, for objects.
Not:  no graph is written here, and nothing is known of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass

from torch import Tensor, fx, nn
from torch.fx import immutable_collections as immutable


class Unfollowed(RuntimeError):
    """A forward does what a graph of it would not."""


class Proxy(fx.Proxy):
    """A proxy that takes `x += y` at its word; fx's own makes a new tensor, `x + y`, of it.

    What is set on it (output.logits = y) would be on the proxy, and not in the graph.
    """

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)  # a protocol that it does not know: __array_struct__
        if name == "_is_param":
            return False  # isinstance(x, nn.Parameter) asks
        rank = self.tracer.rank(self) if name == "ndim" else None
        return Attribute(self, name) if rank is None else rank

    def __len__(self):
        return self.tracer.length(self)

    def __index__(self):
        return self.tracer.constant(self, int)

    def __int__(self):
        return int(self.tracer.constant(self, int, float))

    def __float__(self):
        return float(self.tracer.constant(self, int, float))

    def __setitem__(self, key, value):
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __setattr__(self, name, value):
        if name not in ("tracer", "node"):
            raise Unfollowed(f"it sets `{name}` of a value that is computed")
        super().__setattr__(name, value)


class Attribute(fx.proxy.Attribute, Proxy):
    """x.shape, of which the length may be known, and x.dim, which is called."""

    def __call__(self, *args, **kwargs):
        is_rank = self.attr in ("dim", "ndimension") and not args and not kwargs
        rank = self.tracer.rank(self.root) if is_rank else None
        return super().__call__(*args, **kwargs) if rank is None else rank

    def __setattr__(self, name, value):
        if name in ("root", "attr", "_node"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


PROXIES = (Proxy, Attribute)


def _in_place(function):
    def write(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split():
    setattr(Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


@dataclass(frozen=True)
class MakeObject:
    """A function of a graph: an object of a class with attributes as a forward has left them."""

    kind: type

    @property
    def __name__(self) -> str:
        return f"make_{self.kind.__name__}"

    def __call__(self, attributes: Mapping[str, object]) -> object:
        made = object.__new__(self.kind)
        for name, value in attributes.items():
            if isinstance(value, immutable.immutable_list):
                value = list(value)
            vars(made)[name] = dict(value) if isinstance(value, immutable.immutable_dict) else value
        return made


def is_object(value: object) -> bool:
    """An object of somebody's class whose attributes are all that it has."""
    kind = type(value)
    if not hasattr(value, "__dict__") or isinstance(value, (Tensor, nn.Module, type)):
        return False
    if callable(value) or is_dataclass(value) or kind.__module__.split(".")[0] == "torch":
        return False
    slots = any(vars(owner).get("__slots__") for owner in kind.__mro__)
    return kind.__new__ is object.__new__ and not slots
