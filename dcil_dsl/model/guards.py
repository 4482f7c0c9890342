"""What a forward decides by the sizes and types of tensors, and never by their numbers.

In:   a graph as it is traced, an example of the model's inputs.
Out:  what a value of the graph is for tensors of such sizes, where that follows from sizes, ranks
      and types alone; `hold`, the node that keeps the graph to what was decided.
Not:  no number of a tensor is ever looked at: the example runs as fake tensors, which have none.

`if x.shape[1] > self.longest` is one way through the forward for each answer. The graph has the
way that the example takes, and a node that ends a call with inputs that would take another one.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.path_state import Attributes
from dcil_dsl.model.side_effects import Randomness

EXAMPLES = 3  # of the fake batch; the model is compared with its graph on other batches
UNKNOWN = object()
# What is read of a tensor that no number of it has a part in. A device is not among them: what is
# traced on one is trained on another.
ATTRIBUTES = ("shape", "ndim", "dtype")
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
    """The values of a growing graph without their numbers, computed when something is asked.

    example  tensors like the graph's inputs, by name; None: nothing is known
    """

    def __init__(self, model: nn.Module, example: dict[str, Tensor] | None):
        self.model, self.example = model, example
        self.values: dict[fx.Node, object] = {}
        self.running = False  # what the forwards of modules do now is not to be traced
        self.fake: FakeTensorMode | None = None

    def of(self, node: fx.Node) -> object:
        """What the node gives; UNKNOWN where a number of a tensor might have a part in it."""
        if self.example is None:
            return UNKNOWN
        self._catch_up(node.graph)
        return self.values[node] if self._is_fact(node) else UNKNOWN

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the node is known to give a tensor."""
        if self.example is None:
            return False
        self._catch_up(node.graph)
        return isinstance(self.values[node], Tensor)

    def words(self, node: fx.Node) -> str:
        """ "x.shape[1] > 8", down to the tensors whose sizes they are."""
        if node.op != "call_function" or _is_of_tensors(self.values[node]):
            return node.name
        args = [self.words(a) if isinstance(a, fx.Node) else str(a) for a in node.args]
        if node.target is getattr:
            return ".".join(args)
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if node.target in SIGNS and len(args) == 2:
            return f" {SIGNS[node.target]} ".join(args)
        return f"{node.target.__name__}({', '.join(args)})"

    def _catch_up(self, graph: fx.Graph) -> None:
        # In the graph's order, as a tensor may be changed in place.
        new = list(takewhile(lambda node: node not in self.values, reversed(graph.nodes)))
        with self._apart():
            for node in reversed(new):
                self.values[node] = self._run(node)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        if self.fake is None:
            _start_autograd()
            self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.running = True
        try:
            with self.fake, torch.no_grad():
                yield
        finally:
            self.running = False

    def _run(self, node: fx.Node) -> object:
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._known)
            match node.op:
                case "placeholder":
                    return self._placed(self.example[node.target])
                case "get_attr":
                    return self._without_numbers(operator.attrgetter(node.target)(self.model))
                case "call_function" if node.target is not hold:
                    return node.target(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                case "call_module":
                    return self._call(self.model.get_submodule(node.target), args, kwargs)
        except Exception:  # whatever cannot be computed without numbers
            pass
        return UNKNOWN

    def _known(self, node: fx.Node) -> object:
        value = self.values[node]
        if value is UNKNOWN:
            raise LookupError(node.name)
        return value

    def _call(self, module: nn.Module, args, kwargs) -> object:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        fakes = {name: self._without_numbers(tensor) for name, tensor in tensors.items()}
        attributes, randomness = [Attributes(part) for part in module.modules()], Randomness()
        try:
            return functional_call(module, fakes, args, kwargs, tie_weights=False)
        finally:
            for part in attributes:
                part.restore()
            randomness.restore()

    def _placed(self, like: Tensor) -> Tensor:
        """An input of this size, where the model is."""
        first = next(self.model.parameters(), like)
        return torch.empty(like.shape, dtype=like.dtype, device=first.device)

    def _without_numbers(self, value: object) -> object:
        def change(leaf):
            return self.fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

        return pytree.tree_map(change, value)

    def _is_fact(self, node: fx.Node) -> bool:
        """Whether the node follows from sizes, ranks and types alone."""
        waiting, seen = [node], set()
        while waiting:
            asked = waiting.pop()
            value = self.values[asked]
            if asked in seen:
                continue
            seen.add(asked)
            if value is UNKNOWN or asked is node and isinstance(value, Tensor):
                return False
            if asked is not node and _is_of_tensors(value):
                continue
            if not self._reads_facts(asked):
                return False
            waiting += asked.all_input_nodes
        return True

    def _reads_facts(self, node: fx.Node) -> bool:
        if node.op == "call_method":
            return node.target in METHODS or _is_of_tensors(self.values[node])
        if node.op != "call_function":
            return False
        if node.target is not getattr:
            return _is_of_tensors(self.values[node]) or _lives_in(node.target)
        owner, name = node.args[:2]
        if name == "dtype":
            # Autocast gives what is computed another type; inputs and weights stay as they are.
            is_given = owner.op in ("placeholder", "get_attr")
            return is_given or not self.values[node].is_floating_point
        return name in ATTRIBUTES


def _lives_in(function: Callable) -> bool:
    home = getattr(function, "__module__", None)
    return home in MODULES or home == f"_{operator.__name__}"


def _is_of_tensors(value: object) -> bool:
    """A tensor, or a collection of which each part is one: x.chunk(3)."""
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return bool(value) and all(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)


@torch.enable_grad()
def _start_autograd() -> None:
    """Have autograd count the devices before fake tensors put in a GPU that is not there.

    With that one counted, the first backward pass of the process would forbid those of all its
    forked children.
    """
    if not torch.cuda.is_available():
        torch.ones(1, requires_grad=True).backward()
