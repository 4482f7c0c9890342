"""What a forward does beside its arithmetic: attributes it changes, random numbers it draws.

In:   a module before its forward, and after it.
Out:  the attribute whose change matters; whether numbers were drawn, and the state put back.
Not:  no graph; tracer.py decides what follows from it.
"""

from __future__ import annotations

import dis
from functools import cache

import torch
from torch import fx, nn

from dcil_dsl.masking.path_state import Attributes
from dcil_dsl.masking.rng import draw_again, random_state

CONSTANT = "_tensor_constant"  # fx's name for a tensor that the forward makes anew at each call


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


@cache
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
        self.state = random_state()

    def moved(self) -> bool:
        cpu, cuda, python, numpy = self.state
        now_cpu, now_cuda, now_python, now = random_state()
        if python != now_python or not torch.equal(cpu, now_cpu):
            return True
        if cuda is not None and not all(map(torch.equal, cuda, now_cuda)):
            return True
        if numpy is None:
            return False
        return now[2] != numpy[2] or bool((now[1] != numpy[1]).any())

    def restore(self) -> None:
        draw_again(self.state)


def _is_computed(value: object) -> bool:
    """A value of the graph, or a collection with one in it."""
    if isinstance(value, (list, tuple)):
        return any(_is_computed(part) for part in value)
    if isinstance(value, dict):
        return any(_is_computed(part) for part in value.values())
    return isinstance(value, fx.Proxy)
