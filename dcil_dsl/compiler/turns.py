"""A training graph cut by path, so that its paths can be run one after the other.

In:   a Dual and one of its phases.
Out:  Turns: what comes before all paths, and each path by itself.
Not:  no losses, no order of turns and no backward pass (training/in_turn.py).

    head            what the paths have in common: weights and their views, layers in front of the
                    first weight that differs
    parts[path]     the path's own nodes, from values of the head to what the model returns on it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.privatize import is_within, twin_names
from dcil_dsl.compiler.segments import early_nodes, forward_of
from dcil_dsl.compiler.unroll_paths import may_draw
from dcil_dsl.graph.topology import nodes_in
from dcil_dsl.masking.apply import apply_whole


@dataclass(frozen=True)
class Part:
    """forward(dual, *values of the head named in `reads`) -> what the model returns on the path.

    keeps    the names of buffers that a run reads and may change: running statistics, counts
    is_once  it holds a module that stays whole: nobody knows what a second run would change
    draws    it may draw random numbers
    """

    forward: Callable
    reads: tuple[str, ...]
    keeps: tuple[str, ...]
    is_once: bool
    draws: bool


@dataclass(frozen=True)
class Turns:
    """head(dual, *inputs) -> the values named in `names`.

    is_ordered  who runs first makes a difference: random numbers are drawn, or running statistics
                are kept that belong to no path alone
    """

    head: Callable
    names: tuple[str, ...]
    parts: dict[str, Part]
    is_ordered: bool


def cut_turns(dual: Dual, phase: int) -> Turns:
    """The training graph of a phase, cut.

         x                       x
         |                       |
        stem           ==>     stem               head
        /  \\                    |
     conv  conv                conv   ,  conv     parts["sparse"], parts["dense"]
       |    |                    |        |
    """
    graph = dual.graphs[True, phase]
    (output,) = (node for node in graph.nodes if node.op == "output")
    early = early_nodes(graph)
    head, own = [], {path: [] for path in output.args[0]}
    for node in graph.nodes:
        path = node.meta.get("path")
        if node is not output:
            (head if node in early or path is None else own[path]).append(node)
    shared = set(head)
    buffers = _buffers(dual)
    parts, crossing = {}, {}
    for path, nodes in own.items():
        results = nodes_in(output.args[0][path])
        read = [n for node in nodes for n in node.all_input_nodes if n in shared]
        reads = dict.fromkeys(read + [n for n in results if n in shared])
        crossing |= reads
        given = {node.target: None for node in reads if node.op == "get_attr"}
        parts[path] = Part(
            forward_of(dual, nodes, reads, output.args[0][path]),
            tuple(node.name for node in reads),
            tuple(name for name in (_of_called(nodes, dual) | given) if name in buffers),
            any(node.target is apply_whole or "whole" in node.meta for node in nodes),
            any(may_draw(node, dual) for node in nodes),
        )
    return Turns(
        forward_of(dual, head, (), tuple(crossing)),
        tuple(node.name for node in crossing),
        parts,
        any(part.draws for part in parts.values()) or _keep_shared_statistics(dual, parts.values()),
    )


def _of_called(nodes: list[fx.Node], dual: Dual) -> dict[str, None]:
    """The names of the buffers of the modules that are called."""
    called = [node.target for node in nodes if node.op == "call_module"]
    called += [node.meta["layer"] for node in nodes if node.meta.get("layer") is not None]
    prefixes = {path: f"{path}." if path else "" for path in called}
    return {
        prefix + name: None
        for path, prefix in prefixes.items()
        for name, _ in dual.get_submodule(path).named_buffers()
    }


def _buffers(dual: Dual) -> set[str]:
    """All but what lies beside pruned weights, which no forward changes."""
    pruned = {name for group in dual.plan.groups for name in group.parameters}
    names = [name for name, _ in dual.named_buffers(remove_duplicate=False)]
    return {name for name in names if name.rpartition("_")[0] not in pruned}


def _keep_shared_statistics(dual: Dual, parts: Iterable[Part]) -> bool:
    private = {entry.module for entry in dual.plan.privates} | set(twin_names(dual.plan))
    return any(not is_within(name, private) for part in parts for name in part.keeps)
