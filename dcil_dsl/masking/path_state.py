"""What a module has put aside: its attributes at one moment, and those that one path has changed.

In:   a module before and after its forward.
Out:  which attributes have changed; the state before, put back; what each path remembers.
Not:  no weights: those are handed to a module at each call (apply.py).
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

SIMPLE = (bool, int, float, str, type(None))
CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
TABLES = ("_parameters", "_buffers")
REMEMBERED = "_remembered"  # the attribute under which a module has what its paths remember


class Attributes:
    """The attributes of one module, its tensors among them, at one moment."""

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
        """The names of those that are others now, or hold other things."""
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
    """While the `with` is open, a module and those in it have what `path` has put aside in them.

    A forward may keep a hidden state, a count of its calls, a tensor computed from its weights.
    Each path finds its own again, as if it were a model by itself; the module's own attributes
    stay as they were given.
    """
    memory = vars(module).setdefault(REMEMBERED, {}).setdefault(path, {})
    base, seen = [], []
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch.nn."):
            continue  # torch's own put nothing aside
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


def same_content(now, before) -> bool:
    """Whether two collections hold the same things, each the very same object."""
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(key in now and now[key] is value for key, value in before.items())
    if isinstance(before, set):
        return now == before
    return all(a is b for a, b in zip(now, before, strict=True))


def _differs(before: object, now: object) -> bool:
    if before is now:
        return False
    simple = type(before) in SIMPLE and type(now) is type(before)
    return not (simple and before == now)


def _refill(container, content) -> None:
    container.clear()
    add = container.update if isinstance(container, (dict, set)) else container.extend
    add(content)
