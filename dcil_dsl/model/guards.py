"""Guards: decisions of a forward by the sizes and types of tensors, never by their numbers.

In:   a graph during tracing, example inputs of the model.
Out:  the value of a node for tensors of such sizes, if it follows from sizes, ranks and types
      alone; `guard`, the function of the node that makes each call check a decision.
Not:  no numbers of tensors (fake_values.py).

`if x.shape[1] > self.longest` has a branch for each answer. The graph has the branch of the example
and a guard that rejects inputs of the other branch. `int(x.shape[2])` is a Python number: the graph
has the number of the example, if an example of other sizes, where sizes may differ between calls,
gives the same one.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.fake_values import UNKNOWN, FakeValues

# Attributes and methods of a tensor that do not depend on its numbers.
ATTRIBUTES = ("shape", "ndim", "dtype", "layout", "device")
# A model is traced on one device and trained on another, and autocast changes types. A decision by
# device or type is known if it is the same for all of these.
DEVICES = tuple(map(torch.device, ("cpu", "cuda")))
PRECISIONS = (torch.bfloat16, torch.float16)
METHODS = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_complex",
    "count",
    "index",
)
SIGNS = {
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.mod: "%",
    operator.floordiv: "//",
}
MODULES = (operator.__name__, math.__name__, builtins.__name__)


def guard(fact: object, expected: bool | int, what: str) -> None:
    """InputError for inputs that would take another branch of the forward than the example."""
    if fact != expected:
        raise InputError(
            f"the graph was made for inputs of other sizes: {what} was {expected} in the example "
            f"inputs and is {fact} here",
            help="give example inputs of the sizes that the model is trained on",
        )


torch.fx.node.has_side_effect(guard)


class Decisions:
    """The known values of a growing graph, computed on demand.

    example  tensors like the graph's inputs, by name; None: no value is known
    other    the same with other sizes that calls may have; None: any size may differ
    running  forwards of modules run untraced
    """

    def __init__(
        self,
        model: nn.Module,
        example: Mapping[str, Tensor] | None,
        other: Mapping[str, Tensor] | None = None,
    ):
        self.model, self.running = model, False
        self.base = None if example is None else self._fakes(example)
        self.other = None if other is None else self._fakes(other)
        self.cast = [self._fakes(example or {}, precision) for precision in PRECISIONS]

    def of(self, node: fx.Node) -> object:
        """The value of the node; UNKNOWN if it may depend on the numbers of a tensor."""
        return self._fact(node, self.base)

    def constant(self, node: fx.Node) -> object:
        """The value of the node in every call; UNKNOWN if it depends on the sizes of a batch."""
        value = self._fact(node, self.base)
        if value is UNKNOWN or self.other is None:
            return UNKNOWN
        same = self._fact(node, self.other)
        return value if type(same) is type(value) and same == value else UNKNOWN

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions of the node's value if it is known to be a tensor."""
        value = self.value(node)
        return value.dim() if isinstance(value, Tensor) else None

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the value of the node is known to be a tensor."""
        return isinstance(self.value(node), Tensor)

    def forget(self, node: fx.Node) -> None:
        """Forget a node that was erased from the graph."""
        for fakes in (self.base, self.other, *self.cast):
            if fakes is not None:
                fakes.values.pop(node, None)

    def words(self, node: fx.Node) -> str:
        """The node as an expression of tensors: "x.shape[1] > 8"."""
        if node.op != "call_function" or _is_of_tensors(self.value(node)):
            return node.name
        args = [self.words(a) if isinstance(a, fx.Node) else str(a) for a in node.args]
        if node.target is getattr:
            return ".".join(args)
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if node.target in SIGNS and len(args) == 2:
            return f" {SIGNS[node.target]} ".join(args)
        return f"{getattr(node.target, '__name__', node.target)}({', '.join(args)})"

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While the `with` is open, forwards of modules run untraced."""
        was_running, self.running = self.running, True
        try:
            yield
        finally:
            self.running = was_running

    def _fakes(
        self, example: Mapping[str, Tensor], precision: torch.dtype | None = None
    ) -> FakeValues:
        return FakeValues(self.model, example, precision, self.apart, guard)

    def value(self, node: fx.Node) -> object:
        """The value of the node, a fake tensor for a tensor; UNKNOWN if it is not known."""
        if self.base is None:
            return UNKNOWN
        self.base.catch_up(node.graph)
        return self.base.values[node]

    def _fact(self, node: fx.Node, fakes: FakeValues | None) -> object:
        if fakes is None:
            return UNKNOWN
        fakes.catch_up(node.graph)
        reads = _facts(node, fakes.values)
        if reads is None:
            return UNKNOWN
        value = fakes.values[node]
        if any(_is_of_device(read, fakes.values) for read in reads):
            for device in DEVICES:
                if not _same(_on_device(node, device, fakes.values), value):
                    return UNKNOWN
        if any(_is_of_computed_type(read, fakes.values) for read in reads):
            for cast in self.cast:
                cast.catch_up(node.graph)
                if not _same(cast.values[node], value):
                    return UNKNOWN
        return value


def _facts(node: fx.Node, values: Mapping[fx.Node, object]) -> list[fx.Node] | None:
    """The nodes from tensors to this one, if it follows from sizes, ranks, types and devices."""
    waiting = [node]
    seen: dict[fx.Node, None] = {}
    while waiting:
        one = waiting.pop()
        value = values[one]
        if one in seen:
            continue
        if value is UNKNOWN or one is node and isinstance(value, Tensor):
            return None
        if one is not node and _is_of_tensors(value):
            continue
        if not _reads_facts(one, values):
            return None
        seen[one] = None
        waiting += one.all_input_nodes
    return list(seen)


def _reads_facts(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    """Whether a node reads its inputs without the numbers of tensors."""
    if node.op == "call_method":
        return node.target in METHODS or _is_of_tensors(values[node])
    if node.op != "call_function":
        return False
    if node.target is not getattr:
        return _is_of_tensors(values[node]) or _lives_in(node.target)
    owner, name = node.args[:2]
    if isinstance(owner, fx.Node) and isinstance(values[owner], torch.device):
        return isinstance(name, str) and name == "type"
    return name in ATTRIBUTES


def _is_of_device(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    return isinstance(values[node], torch.device)


def _is_of_computed_type(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    """Whether autocast may change the type that the node reads."""
    dtype, owner = values[node], node.args[0] if node.args else None
    if not isinstance(dtype, torch.dtype) or node.target is not getattr:
        return False
    is_given = isinstance(owner, fx.Node) and owner.op in ("placeholder", "get_attr")
    return not is_given and dtype.is_floating_point


def _on_device(node: fx.Node, device: torch.device, values: Mapping[fx.Node, object]) -> object:
    """The value of a node if all tensors were on that device."""

    def known(one: fx.Node) -> Any:
        value = values[one]
        if isinstance(value, torch.device):
            return device
        if _is_of_tensors(value) or isinstance(one.target, str):
            return value
        args, kwargs = fx.map_arg((one.args, one.kwargs), known)
        return one.target(*args, **kwargs)

    try:
        return known(node)
    except Exception:  # a device of another type may lack an attribute
        return UNKNOWN


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and bool(one == other)


def _lives_in(function: object) -> bool:
    """Whether a function is one of the modules whose functions take plain numbers."""
    home = getattr(function, "__module__", None)
    return home in MODULES or home == f"_{operator.__name__}"


def _is_of_tensors(value: object) -> bool:
    """Whether this is a tensor, or a collection of tensors, such as x.chunk(3)."""
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return bool(value) and all(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)
