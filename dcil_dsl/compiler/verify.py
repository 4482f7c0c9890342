"""Verify the graph after each pass; a violation is a bug of dcil.

In:   a graph, the model that its targets refer to, the plan.
Out:  nothing, or GraphError.
Not:  no numbers; the tests show that outputs and gradients are right.
"""

from __future__ import annotations

from torch import fx, nn

from dcil_dsl.compiler.privatize import twin_name
from dcil_dsl.masking.split import split_weight
from dcil_dsl.masking.views import read_stored
from dcil_dsl.model.dataflow import reached_from
from dcil_dsl.plan.plan import Phase, Plan


class GraphError(AssertionError):
    """A pass returned an invalid graph (E403)."""


def verify_targets(graph: fx.Graph, model: nn.Module) -> None:
    """Every target exists in the model, and the graph is well formed."""
    graph.lint()
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            owner, _, name = node.target.rpartition(".")
            _demand(hasattr(model.get_submodule(owner), name), f"`{node.target}` does not exist")


def verify_paths(graph: fx.Graph, phase: Phase) -> None:
    """The output is {path: ...}, and no value of a path depends on another path."""
    (output,) = [node for node in graph.nodes if node.op == "output"]
    _demand(tuple(output.args[0]) == phase.paths, "the output does not name the paths that run")
    for path in phase.paths:
        own = [node for node in graph.nodes if node.meta.get("path") == path]
        for node in reached_from(graph, own):
            other = node.meta.get("path")
            _demand(node is output or other == path, f"`{node.name}` mixes {path} and {other}")


def verify_routes(graph: fx.Graph, plan: Plan) -> None:
    """Only split_weight reads a pruned weight and its buffers. A layer may also read a mask that a
    pass of an extra gives it and records in the meta of its node.

    If the weight is stored as theta, read_stored reads it, and only split_weight the result.
    """
    pruned = {name for group in plan.groups for name in group.parameters}
    kinds = ("mask", "score", "threshold", "scale", "reserve")
    guarded = pruned | {f"{name}_{kind}" for name in pruned for kind in kinds}
    for node in graph.nodes:
        is_power = node.target is read_stored
        if is_power or node.op == "get_attr" and node.target in guarded:
            for user in node.users:
                reads = user.target in (split_weight, read_stored)
                reads |= user.meta.get("mask") is node
                _demand(reads, f"`{user.name}` reads `{node.target}` bare")


def verify_privates(graph: fx.Graph, plan: Plan, phase: Phase) -> None:
    """Each path that runs uses its own copy of every private module, and no other path's.

    No path uses a module that only the graph of the other mode calls, such as an auxiliary head.
    """
    owner = {
        entry.module if path == plan.deploy else twin_name(entry.module, path): path
        for entry in plan.privates
        for path in phase.paths
    }
    used = set()
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            names = node.target.split(".")
            for end in range(1, len(names) + 1):
                module, path = ".".join(names[:end]), node.meta.get("path")
                if module in owner:
                    used.add(module)
                    _demand(path == owner[module], f"`{node.target}` is used by path {path}")
    for entry in plan.privates:
        names = {path: twin_name(entry.module, path) for path in phase.paths}
        own = {entry.module if path == plan.deploy else name for path, name in names.items()}
        missing = own - used
        _demand(missing in (set(), own), f"no path uses {', '.join(sorted(missing))}")


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise GraphError(message)
