"""What a forward does beside its arithmetic: attributes it changes, random numbers it draws.

In:   a module before its forward, and after it.
Out:  what has changed; the state before, put back.
Not:  no graph; tracer.py decides what follows from it.
"""

from __future__ import annotations

import dis
import random
import sys
from functools import lru_cache

import torch
from torch import fx, nn

from dcil_dsl.graph.inputs import SIMPLE

CONSTANT = "_tensor_constant"  # fx's name for a tensor that the forward makes anew at each call
CONTAINERS = (list, dict, set)
TABLES = ("_parameters", "_buffers")


class Attributes:
    """The attributes of one module, its tensors among them, at one moment."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = dict(vars(module))
        self.contents = {
            name: type(value)(value)
            for name, value in self.values.items()
            if type(value) in CONTAINERS
        }

    def restore(self) -> None:
        attributes = vars(self.module)
        for name in [name for name in attributes if name not in self.values]:
            del attributes[name]
        attributes.update(self.values)
        for name, content in self.contents.items():
            if not _same_content(self.values[name], content):
                _refill(self.values[name], content)

    def changes(self) -> list[str]:
        """The names of those that are others now, or hold other things."""
        attributes = vars(self.module)
        missing = object()
        found = [
            name
            for name in {**self.values, **attributes}
            if _differs(self.values.get(name, missing), attributes.get(name, missing))
        ]
        for name, content in self.contents.items():
            if name not in found and not _same_content(self.values[name], content):
                changed = self.values[name]
                if name in TABLES:
                    found += [key for key in content if changed.get(key) is not content[key]]
                else:
                    found.append(name)
        return found


def changed_attribute(before: Attributes) -> str | None:
    """The first attribute whose change a graph would not repeat.

    A value that is computed and put aside under a new name is none, unless the class reads it.
    """
    attributes, kind = vars(before.module), type(before.module)
    for name in before.changes():
        is_aside = name not in before.values and _is_computed(attributes.get(name))
        if not name.startswith(CONSTANT) and (not is_aside or is_read(kind, name)):
            return name
    return None


@lru_cache(maxsize=None)
def is_read(kind: type, name: str) -> bool:
    """Whether a method of a class, or of those it is derived from, reads an attribute `name`."""
    for owner in kind.__mro__:
        if owner is nn.Module:
            return False
        for function in vars(owner).values():
            code = getattr(function, "__code__", None)
            if code is not None and name in code.co_names:
                for step in dis.get_instructions(code):
                    if step.argval == name and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                        return True
    return False


class Randomness:
    """The states of the generators that a forward may draw from without a tensor."""

    def __init__(self):
        self.python, self.torch = random.getstate(), torch.get_rng_state()
        numpy = sys.modules.get("numpy")
        self.numpy = numpy.random.get_state() if numpy is not None else None

    def moved(self) -> bool:
        if random.getstate() != self.python or not torch.equal(torch.get_rng_state(), self.torch):
            return True
        if self.numpy is None:
            return False
        now = sys.modules["numpy"].random.get_state()
        return now[2] != self.numpy[2] or bool((now[1] != self.numpy[1]).any())

    def restore(self) -> None:
        random.setstate(self.python)
        torch.set_rng_state(self.torch)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def _differs(before: object, now: object) -> bool:
    if before is now:
        return False
    simple = type(before) in SIMPLE and type(now) is type(before)
    return not (simple and before == now)


def _is_computed(value: object) -> bool:
    """A value of the graph, or a collection with one in it."""
    if isinstance(value, (list, tuple)):
        return any(_is_computed(part) for part in value)
    if isinstance(value, dict):
        return any(_is_computed(part) for part in value.values())
    return isinstance(value, fx.Proxy)


def _same_content(now, before) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(key in now and now[key] is value for key, value in before.items())
    if isinstance(before, list):
        return all(a is b for a, b in zip(now, before, strict=True))
    return now == before


def _refill(container, content) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
