"""What a forward decides by the sizes and types of tensors, and never by their numbers.

In:   a graph as it is traced, an example of the model's inputs.
Out:  what a value of the graph is for tensors of such sizes, where that follows from sizes, ranks
      and types alone; `hold`, the node that keeps the graph to what was decided.
Not:  no number of a tensor is ever looked at (fake_values.py).

`if x.shape[1] > self.longest` is one way through the forward for each answer. The graph has the
way that the example takes, and a node that ends a call with inputs that would take another one.
`int(x.shape[2])` is a number of Python: the graph has the one of the example, if an example of
other sizes, where those may differ from call to call, has the same.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.fake_values import UNKNOWN, FakeValues

# What is read of a tensor that no number of it has a part in.
ATTRIBUTES = ("shape", "ndim", "dtype", "layout", "device")
# What is traced on one device is trained on another, and under autocast what is computed has
# another type: a question about them is decided where the answer is the same for all of these.
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


def hold(fact: object, expected: bool | int, what: str) -> None:
    """Ends a call whose inputs would take another way through the forward than the example."""
    if fact != expected:
        raise InputError(
            f"the graph was made for inputs of other sizes: {what} was {expected} in the example "
            f"inputs and is {fact} here",
            help="give example inputs of the sizes that the model is trained on",
        )


torch.fx.node.has_side_effect(hold)


class Decisions:
    """What is known of the values of a growing graph, computed when something is asked.

    example  tensors like the graph's inputs, by name; None: nothing is known
    other    the same in the other sizes that calls may have; None: any size may differ
    running  what the forwards of modules do now is not to be traced
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
        """What the node gives; UNKNOWN where a number of a tensor might have a part in it."""
        return self._fact(node, self.base)

    def constant(self, node: fx.Node) -> object:
        """What the node gives in every call; UNKNOWN where the sizes of a batch have a part."""
        value = self._fact(node, self.base)
        if value is UNKNOWN or self.other is None:
            return UNKNOWN
        same = self._fact(node, self.other)
        return value if type(same) is type(value) and same == value else UNKNOWN

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions of the tensor that the node is known to give."""
        value = self.value(node)
        return value.dim() if isinstance(value, Tensor) else None

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the node is known to give a tensor."""
        return isinstance(self.value(node), Tensor)

    def forget(self, node: fx.Node) -> None:
        """The node is no longer in the graph."""
        for fakes in (self.base, self.other, *self.cast):
            if fakes is not None:
                fakes.values.pop(node, None)

    def words(self, node: fx.Node) -> str:
        """ "x.shape[1] > 8", down to the tensors whose sizes they are."""
        if node.op != "call_function" or _is_of_tensors(self.value(node)):
            return node.name
        args = [self.words(a) if isinstance(a, fx.Node) else str(a) for a in node.args]
        if node.target is getattr:
            return ".".join(args)
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if node.target in SIGNS and len(args) == 2:
            return f" {SIGNS[node.target]} ".join(args)
        return f"{node.target.__name__}({', '.join(args)})"

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While it is open, what forwards of modules do is not traced."""
        was_running, self.running = self.running, True
        try:
            yield
        finally:
            self.running = was_running

    def _fakes(
        self, example: Mapping[str, Tensor], precision: torch.dtype | None = None
    ) -> FakeValues:
        return FakeValues(self.model, example, precision, self.apart, hold)

    def value(self, node: fx.Node) -> object:
        """What the node gives, as a fake tensor where it is one; UNKNOWN where that is unknown."""
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
    waiting, seen = [node], {}
    while waiting:
        asked = waiting.pop()
        value = values[asked]
        if asked in seen:
            continue
        if value is UNKNOWN or asked is node and isinstance(value, Tensor):
            return None
        if asked is not node and _is_of_tensors(value):
            continue
        if not _reads_facts(asked, values):
            return None
        seen[asked] = None
        waiting += asked.all_input_nodes
    return list(seen)


def _reads_facts(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    if node.op == "call_method":
        return node.target in METHODS or _is_of_tensors(values[node])
    if node.op != "call_function":
        return False
    if node.target is not getattr:
        return _is_of_tensors(values[node]) or _lives_in(node.target)
    owner, name = node.args[:2]
    if isinstance(values[owner], torch.device):
        return name == "type"
    return name in ATTRIBUTES


def _is_of_device(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    return isinstance(values[node], torch.device)


def _is_of_computed_type(node: fx.Node, values: Mapping[fx.Node, object]) -> bool:
    """Whether autocast may change the type that the node reads."""
    if not isinstance(values[node], torch.dtype) or node.target is not getattr:
        return False
    is_given = node.args[0].op in ("placeholder", "get_attr")
    return not is_given and values[node].is_floating_point


def _on_device(node: fx.Node, device: torch.device, values: Mapping[fx.Node, object]) -> object:
    """What a fact would be if all tensors were on that device."""

    def known(asked: fx.Node) -> object:
        value = values[asked]
        if isinstance(value, torch.device):
            return device
        if _is_of_tensors(value) or asked.op != "call_function":
            return value
        args, kwargs = fx.map_arg((asked.args, asked.kwargs), known)
        return asked.target(*args, **kwargs)

    try:
        return known(node)
    except Exception:  # a device of another kind may lack what is asked
        return UNKNOWN


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and bool(one == other)


def _lives_in(function: Callable) -> bool:
    home = getattr(function, "__module__", None)
    return home in MODULES or home == f"_{operator.__name__}"


def _is_of_tensors(value: object) -> bool:
    """A tensor, or a collection of which each part is one: x.chunk(3)."""
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return bool(value) and all(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)
