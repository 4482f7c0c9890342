"""The side effects of a forward: attributes it sets, random numbers it draws, weights it writes.

In:   a module before, during and after its forward.
Out:  the attributes that changed, restored, or kept per path; the state of the random number
      generators, restored; the names of the weights that were written.
Not:  no graph; tracer.py decides what follows from a side effect. No weights of paths: each call
      of a module receives them (calls.py).
"""

from __future__ import annotations

import copy
import dis
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcil_dsl.model.generators import (
    States,
    has_moved,
    kept_generators,
    read_states,
    restore_states,
    seed_kept,
)

SIMPLE = (bool, int, float, str, type(None))
CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
EMPTY: dict[type, Any] = {kind: kind() for kind in CONTAINERS}
TABLES = ("_parameters", "_buffers")
REMEMBERED = "_remembered"  # the attribute of a module that holds the attributes of its paths
CONSTANT = "_tensor_constant"  # fx's name for a tensor that the forward makes at each call
MISSING = object()
RENORM = torch.ops.aten.embedding_renorm_.default  # the operation of max_norm


# -- attributes ------------------------------------------------------------------------------------


class Attributes:
    """A snapshot of the attributes of one module, tensors included."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = dict(vars(module))
        self.nested: dict[str, list[tuple[Any, Any]]] = {}
        for name, value in self.values.items():
            kind = type(value)
            if name == REMEMBERED or kind not in CONTAINERS and kind is not tuple:
                continue
            if value:
                parts = [(part, part.copy()) for part in _collections(value, set())]
            else:  # as most of a module's tables of hooks are
                parts = [] if kind is tuple else [(value, EMPTY[kind])]
            self.nested[name] = parts

    def content(self, name: str) -> Any:
        """What a collection held, the value of any other attribute, or MISSING."""
        value = self.values.get(name, MISSING)
        if type(value) not in CONTAINERS or name not in self.nested:
            return value
        return self.nested[name][0][1]

    def restore(self) -> None:
        """Set the attributes back, and the contents of collections in them, however deep."""
        attributes = vars(self.module)
        for name in [name for name in attributes if name not in self.values]:
            del attributes[name]
        attributes.update(self.values)
        for parts in self.nested.values():
            for part, content in parts:
                if not same_content(part, content):
                    _refill(part, content)

    def changes(self) -> list[str]:
        """The names of the attributes that have other values or contents now."""
        attributes = vars(self.module)
        missing = object()
        found = [
            name
            for name in {**self.values, **attributes}
            if _differs(self.values.get(name, missing), attributes.get(name, missing))
        ]
        for name, parts in self.nested.items():
            if name in found or all(same_content(part, content) for part, content in parts):
                continue
            if name in TABLES:
                (table, content), *_ = parts
                found += [key for key in content if table.get(key) is not content[key]]
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
        copies: dict[int, Any] = {}  # what two modules share is one object in the memory too
        for name, before in seen:
            attributes = vars(before.module)
            for changed in before.changes():
                value = _copied(attributes.get(changed), copies)
                memory.setdefault(name, {})[changed] = value
        for given in base:
            given.restore()


def holders(before: Attributes, model: nn.Module) -> set[nn.Module]:
    """The modules of a model with a collection whose contents `before.module` has changed."""
    changed = {
        id(part)
        for parts in before.nested.values()
        for part, content in parts
        if not same_content(part, content)
    }
    if not changed:
        return set()
    return {
        module
        for module in model.modules()
        if any(
            id(p) in changed for value in vars(module).values() for p in _collections(value, set())
        )
    }


def _collections(value: Any, seen: set[int]) -> Iterator[Any]:
    """The collections that can change in a value: itself, and those within it."""
    if id(value) in seen or not (type(value) in CONTAINERS or type(value) is tuple):
        return
    seen.add(id(value))
    if type(value) is not tuple:
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        yield from _collections(part, seen)


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """`value` with a copy of each collection in it; one of each, as there is one of each now."""
    if type(value) is tuple:
        return tuple(_copied(part, copies) for part in value)
    if type(value) not in CONTAINERS:
        return value
    if id(value) not in copies:
        made = copies[id(value)] = copy.copy(value)
        if isinstance(value, dict):
            made.update({key: _copied(part, copies) for key, part in value.items()})
        elif not isinstance(value, set):
            _refill(made, [_copied(part, copies) for part in value])
    return copies[id(value)]


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


# -- changes that a graph would not repeat ---------------------------------------------------------


def changed_attribute(
    before: Attributes, is_kept: Callable[[str, object, object], bool] = lambda *change: False
) -> str | None:
    """The first attribute with a change that a graph would not repeat.

    A computed value under a new name does not count, unless the class reads it.

    is_kept  whether a graph may omit a change, given the name, the old value and the new one
    """
    attributes = vars(before.module)
    kind: type = type(before.module)
    for name in before.changes():
        new = attributes.get(name)
        is_aside = name not in before.values and _is_computed(new)
        if name.startswith(CONSTANT) or (is_aside and not is_read(kind, name)):
            continue
        old = before.content(name)
        if not is_kept(name, old, new):
            return name
    return None


@cache
def is_read(kind: type, name: str) -> bool:
    """Whether a method of a class or its base classes reads an attribute `name`."""
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
    """A snapshot of the random number generators, and of those that modules keep."""

    def __init__(self, *modules: nn.Module) -> None:
        self.state = random_state(*modules)

    def moved(self) -> bool:
        """Whether random numbers were drawn since the snapshot."""
        cpu, cuda, python, numpy, kept = self.state
        now_cpu, now_cuda, now_python, now, _ = random_state()
        if has_moved(kept) or python != now_python or not torch.equal(cpu, now_cpu):
            return True
        if cuda is not None and not all(map(torch.equal, cuda, now_cuda or ())):
            return True
        if numpy is None:
            return False
        return now[2] != numpy[2] or bool((now[1] != numpy[1]).any())

    def restore(self) -> None:
        """Set the generators back to the snapshot."""
        draw_again(self.state)


def _is_computed(value: object) -> bool:
    """Whether this is a value of the graph, or a collection with one in it."""
    if isinstance(value, (list, tuple)):
        return any(_is_computed(part) for part in value)
    if isinstance(value, dict):
        return any(_is_computed(part) for part in value.values())
    return isinstance(value, fx.Proxy)


# -- random numbers --------------------------------------------------------------------------------


# The generators are torch's on the CPU and on every CUDA device in use, Python's, numpy's if the
# process has imported numpy, and those that modules keep: opaque modules may draw from all of
# them. Apple's GPU takes the place of the CUDA devices.
RandomState = tuple[Tensor, list[Tensor] | None, Any, Any, States]


def random_state(*modules: nn.Module) -> RandomState:
    """The states of all random number generators, and of those that the modules keep."""
    cuda = torch.cuda.get_rng_state_all() if _uses_cuda() else None
    if _uses_mps():
        cuda = [torch.mps.get_rng_state()]
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy is not None else None
    kept = read_states([one for module in modules for one in kept_generators(module)])
    return torch.get_rng_state(), cuda, random.getstate(), of_numpy, kept


def draw_again(state: RandomState) -> None:
    """Restore the generators, which then draw the same numbers as after `state` was read."""
    cpu, cuda, python, of_numpy, kept = state
    restore_states(kept)
    torch.set_rng_state(cpu)
    if cuda is not None and _uses_mps():
        torch.mps.set_rng_state(cuda[0])
    elif cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
    random.setstate(python)
    if of_numpy is not None:
        sys.modules["numpy"].random.set_state(of_numpy)


def seed_generators(seed: int, keeper: nn.Module | None = None) -> None:
    """Seed all generators, and those that `keeper` keeps.

    torch.manual_seed would record a stack at each call for devices that are not in use yet, and
    seed them later.
    """
    torch.default_generator.manual_seed(seed)
    if _uses_cuda():
        torch.cuda.manual_seed_all(seed)
    if _uses_mps():
        torch.mps.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)  # its limit
    if keeper is not None:
        seed_kept(keeper, seed)


@contextmanager
def drawn_apart(seed: int | None = None, keeper: nn.Module | None = None) -> Iterator[None]:
    """While the `with` is open, draw from `seed` (None: from the current states); afterwards the
    generators continue as if nothing had been drawn. Those that `keeper` keeps do, too.

    torch's fork_rng would initialize every device of the machine.
    """
    state = random_state(*([] if keeper is None else [keeper]))
    if seed is not None:
        seed_generators(seed)
    try:
        yield
    finally:
        draw_again(state)


def _uses_mps() -> bool:
    is_available: Callable[[], bool] = torch.backends.mps.is_available
    return is_available()


def _uses_cuda() -> bool:
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    return is_initialized()


# Its result is not read; without this mark, a cleaned graph would lose the call.
torch.fx.node.has_side_effect(draw_again)


# -- writes to weights -----------------------------------------------------------------------------


class WeightWatch(TorchDispatchMode):
    """`written`: {full name: whether another operation than `max_norm` wrote to it}."""

    def __init__(self, model: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.written: dict[str, bool] = {}
        self.before = dict(model.named_parameters(remove_duplicate=False))
        self.names: dict[int, list[str]] = {}
        for name, parameter in self.before.items():
            self.names.setdefault(_place(parameter), []).append(name)
        self.names.pop(0, None)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for changed in _changed(function, args, kwargs):
            self._note(self.names.get(_place(changed), ()), function is not RENORM)
        return function(*args, **kwargs)

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)  # type: ignore[no-untyped-call]
        now = dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in self.before.items():
            if now.get(name) is not parameter or _place(parameter) not in (0, *self.names):
                self._note([name], True)

    def _note(self, names: Iterable[str], is_other: bool) -> None:
        for name in names:
            self.written[name] = is_other or self.written.get(name, False)


def _changed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    if not function._schema.is_mutable:
        return
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    yield tensor


def _place(tensor: Tensor) -> int:
    """The address of its storage; 0 if it has none."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()
