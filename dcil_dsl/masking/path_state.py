"""Snapshot a module's Python attributes around `forward`, and keep a copy per path of those that
change.

In:   a module before and after its forward.
Out:  the attributes that changed; the earlier state, restored; the attributes of each path.
Not:  no weights: each call of a module receives them (apply.py).
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

SIMPLE = (bool, int, float, str, type(None))
CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
TABLES = ("_parameters", "_buffers")
REMEMBERED = "_remembered"  # the attribute of a module that holds the attributes of its paths


class Attributes:
    """A snapshot of the attributes of one module, tensors included."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = dict(vars(module))
        self.contents = {
            name: copy.copy(value)
            for name, value in self.values.items()
            if type(value) in CONTAINERS and value is not None
        }

    def restore(self) -> None:
        attributes = vars(self.module)
        for name in [name for name in attributes if name not in self.values]:
            del attributes[name]
        attributes.update(self.values)
        for name, content in self.contents.items():
            if not same_content(self.values[name], content):
                _refill(self.values[name], content)

    def changes(self) -> list[str]:
        """The names of the attributes that have other values or contents now."""
        attributes = vars(self.module)
        missing = object()
        found = [
            name
            for name in {**self.values, **attributes}
            if _differs(self.values.get(name, missing), attributes.get(name, missing))
        ]
        for name, content in self.contents.items():
            if name not in found and not same_content(self.values[name], content):
                changed = self.values[name]
                if name in TABLES:
                    found += [key for key in content if changed.get(key) is not content[key]]
                else:
                    found.append(name)
        return found


@contextmanager
def remembered_by(module: nn.Module, path: str) -> Iterator[None]:
    """While the `with` is open, a module and its submodules have the attributes of `path`.

    A forward may keep a hidden state, a count of its calls, a tensor computed from its weights.
    Each path has its own, as if it were a model of its own; the attributes of the module itself
    stay as they are.
    """
    memory = vars(module).setdefault(REMEMBERED, {}).setdefault(path, {})
    base: list[Attributes] = []
    seen: list[tuple[str, Attributes]] = []
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch.nn."):
            continue  # torch's own modules keep no such state
        base.append(Attributes(part))
        if name in memory:
            vars(part).update(memory[name])
            seen.append((name, Attributes(part)))
        else:
            seen.append((name, base[-1]))
    try:
        yield
    finally:
        for (name, before), given in zip(seen, base, strict=True):
            attributes = vars(before.module)
            for changed in before.changes():
                value = attributes.get(changed)
                value = copy.copy(value) if type(value) in CONTAINERS else value
                memory.setdefault(name, {})[changed] = value
            given.restore()


def same_content(now: Any, before: Any) -> bool:
    """Whether two collections hold the very same objects."""
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(key in now and now[key] is value for key, value in before.items())
    if isinstance(before, set):
        return bool(now == before)
    return all(a is b for a, b in zip(now, before, strict=True))


def _differs(before: object, now: object) -> bool:
    if before is now:
        return False
    simple = type(before) in SIMPLE and type(now) is type(before)
    return not (simple and before == now)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    add = container.update if isinstance(container, (dict, set)) else container.extend
    add(content)
