"""Which nodes of a graph depend on others, and which may share memory with a written value.

In:   a traced graph and the model to which its targets refer.
Out:  the nodes that depend on given ones; Storage: nodes that may share memory, with the nodes
      that write to it.
Not:  no changes. A value that may be a view counts as one: a needless copy costs time, an
      overlooked view gives wrong numbers.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
# Attributes of a tensor that are not views of it.
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
        """Every call that reads or writes it."""
        nodes = {*self.members, *(user for node in self.members for user in node.users)}
        return {node for node in nodes if node.op.startswith("call")}


def written_storages(graph: fx.Graph, model: nn.Module) -> tuple[Storage, ...]:
    """Every storage that the graph may change in place; an opaque module may change its inputs."""
    root: dict[fx.Node, fx.Node] = {node: node for node in graph.nodes}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            root[node] = root[root[node]]  # halves the path for the next search
            node = root[node]
        return node

    writers = []
    for node in graph.nodes:
        changed = written(node, model)
        if changed:
            writers.append(node)
        for same in {*changed, *_viewed(node, model)}:
            root[find(node)] = find(same)
    of_storage: dict[fx.Node, list[fx.Node]] = {}
    for writer in writers:
        of_storage.setdefault(find(writer), []).append(writer)
    members: dict[fx.Node, list[fx.Node]] = {top: [] for top in of_storage}
    for node in graph.nodes:
        if find(node) in members:
            members[find(node)].append(node)
    return tuple(Storage(tuple(members[top]), tuple(of_storage[top])) for top in members)


def written(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The arguments that a node may change."""
    if node.meta.get("opaque") is not None:
        return given_to_opaque(node)
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    match node.op, node.target:
        case "call_module", str(path) if getattr(model.get_submodule(path), "inplace", False):
            return first
        case "call_method", str(name) if _is_in_place(name):
            return first
        case "call_function", function:
            out = node.kwargs.get("out")
            if isinstance(out, fx.Node):
                return [out]
            in_place = _is_in_place(getattr(function, "__name__", ""))
            if in_place or function in WRITING_OPERATORS or argument(node, "inplace"):
                return first or [v for v in node.kwargs.values() if isinstance(v, fx.Node)][:1]
    return []


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _viewed(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The arguments whose memory the result of a node may share."""
    if node.meta.get("opaque") is not None:
        return given_to_opaque(node)
    first = list(node.all_input_nodes[:1])
    match node.op, node.target:
        case "call_module", str(path) if isinstance(model.get_submodule(path), VIEW_MODULES):
            return first
        case "call_method", name if name in VIEWS:
            return first
        case "call_function", function:
            if function is getattr and node.args[1] in FACTS:
                return []
            home = (getattr(function, "__module__", None) or "torch").split(".")[0]
            if home not in PURE_HOMES and home != "dcil_dsl":
                return node.all_input_nodes  # the user's own function may return its arguments
            return first if getattr(function, "__name__", "") in VIEWS else []
    return []


def given_to_opaque(node: fx.Node) -> list[fx.Node]:
    """The arguments of a call of an opaque module, without its weights."""
    given: Any = [*node.args[3:]] if node.op == "call_function" else [node.args, node.kwargs]
    return list(dict.fromkeys(nodes_in(given)))


def argument(node: fx.Node, name: str) -> object:
    """The argument of a called function by the name of its parameter; None if there is none."""
    if name in node.kwargs:
        return node.kwargs[name]
    if isinstance(node.target, str) or (signature := _signature(node.target)) is None:
        return None
    try:
        return signature.bind(*node.args, **node.kwargs).arguments.get(name)
    except TypeError:  # arguments that do not fit the signature
        return None


@lru_cache  # parsing the signature of a builtin is slow
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without one
        return None


# -- dependence ------------------------------------------------------------------------------------


def reached_from(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The sources and every node that depends on one of them."""
    reached = set(sources)
    waiting = list(reached)
    while waiting:
        new = [user for user in waiting.pop().users if user not in reached]
        reached.update(new)
        waiting += new
    return reached


def nodes_in(structure: Any) -> list[fx.Node]:
    """The nodes in an argument of a node, in order."""
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.map_arg(structure, note)
    return found
