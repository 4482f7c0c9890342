"""What a graph changes in place, and which of its values would see it.

In:   a traced graph and the model that its targets name into.
Out:  Storage: nodes that may share memory, with the nodes that write to it.
Not:  nothing is changed. A value that may be a view counts as one: to take two values for the
      same costs a copy, to overlook it costs the right answer.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from torch import fx, nn

# Tensor methods and torch functions whose result is, or may be, a view of their first argument.
VIEWS = frozenset(
    """
    view view_as reshape reshape_as flatten ravel unflatten permute transpose swapaxes swapdims
    movedim moveaxis t adjoint squeeze unsqueeze expand expand_as broadcast_to narrow select
    chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind diagonal unfold
    as_strided detach contiguous to type type_as float double half bfloat16 real imag
    view_as_real view_as_complex atleast_1d atleast_2d atleast_3d getitem getattr
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout as_reentrant
""".split()
)
# Attributes that say something about a tensor and are no view of it.
FACTS = frozenset({"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda"})
VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
WRITING_OPERATORS = frozenset(
    {
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
        operator.iand,
        operator.ior,
        operator.ixor,
        operator.setitem,
    }
)
PURE_HOMES = ("torch", "_operator", "builtins", "math")


@dataclass(frozen=True, eq=False)
class Storage:
    """Nodes that may share memory, at least one of which is written in place.

    members  in the order of the graph, inputs and attributes of the model included
    writers  the nodes that change it; each is a member
    """

    members: tuple[fx.Node, ...]
    writers: tuple[fx.Node, ...]

    def touching(self) -> set[fx.Node]:
        """Every node that reads or writes it; inputs, attributes and the output are none."""
        nodes = {*self.members, *(user for node in self.members for user in node.users)}
        return {node for node in nodes if node.op.startswith("call")}


def written_storages(graph: fx.Graph, model: nn.Module) -> tuple[Storage, ...]:
    """Every storage that the graph changes in place, or may: a module kept opaque may."""
    root: dict[fx.Node, fx.Node] = {node: node for node in graph.nodes}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            root[node] = root[root[node]]  # halves the way for the next one who asks
            node = root[node]
        return node

    writers = []
    for node in graph.nodes:
        written = _written(node, model)
        if written:
            writers.append(node)
        for same in {*written, *_viewed(node, model)}:
            root[find(node)] = find(same)
    of_storage: dict[fx.Node, list[fx.Node]] = {}
    for writer in writers:
        of_storage.setdefault(find(writer), []).append(writer)
    members: dict[fx.Node, list[fx.Node]] = {top: [] for top in of_storage}
    for node in graph.nodes:
        if find(node) in members:
            members[find(node)].append(node)
    return tuple(Storage(tuple(members[top]), tuple(of_storage[top])) for top in members)


def _written(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The arguments that a node changes, or may change."""
    if node.meta.get("opaque") is not None:
        return given_to_whole(node)
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    match node.op:
        case "call_module" if getattr(model.get_submodule(node.target), "inplace", False):
            return first
        case "call_method" if node.target.endswith("_") and not node.target.endswith("__"):
            return first
        case "call_function":
            out = node.kwargs.get("out")
            if isinstance(out, fx.Node):
                return [out]
            name = getattr(node.target, "__name__", "")
            in_place = name.endswith("_") and not name.endswith("__")
            if in_place or node.target in WRITING_OPERATORS or argument(node, "inplace"):
                return first or [v for v in node.kwargs.values() if isinstance(v, fx.Node)][:1]
    return []


def _viewed(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The arguments whose memory the result of a node may share."""
    if node.meta.get("opaque") is not None:
        return given_to_whole(node)
    first = list(node.all_input_nodes[:1])
    match node.op:
        case "call_module" if isinstance(model.get_submodule(node.target), VIEW_MODULES):
            return first
        case "call_method" if node.target in VIEWS:
            return first
        case "call_function":
            if node.target is getattr and node.args[1] in FACTS:
                return []
            home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
            if home not in PURE_HOMES and home != "dcil_dsl":
                return node.all_input_nodes  # somebody's own function may return what it was given
            return first if getattr(node.target, "__name__", "") in VIEWS else []
    return []


def given_to_whole(node: fx.Node) -> list[fx.Node]:
    """What a module that is one call is called with, its weights left out."""
    given = [*node.args[3:]] if node.op == "call_function" else [node.args, node.kwargs]
    found: dict[fx.Node, None] = {}
    fx.map_arg(given, lambda n: found.setdefault(n))
    return list(found)


def argument(node: fx.Node, name: str) -> object:
    """The argument of a called function by its parameter's name; None where it has none such."""
    if name in node.kwargs:
        return node.kwargs[name]
    signature = _signature(node.target)
    try:
        return signature and signature.bind(*node.args, **node.kwargs).arguments.get(name)
    except TypeError:  # it is called in a way that it does not take
        return None


@lru_cache  # that of a builtin is parsed from its text each time
def _signature(function: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without one
        return None
