"""Activation checkpointing (--checkpoint-activations): recompute activations in the backward pass.

In:   a Dual.
Out:  the same Dual, whose training graphs of n nodes run in about sqrt(n) segments. Values between
      segments are kept; values within a segment are computed again for the backward pass.
Not:  the results do not change: the second run of a segment draws the same random numbers and does
      not update buffers (running statistics, counts) again.

The nodes of one path come before those of the next, so each segment belongs to one path. The views
of weights come before all segments, so that a score is updated once. No cut separates a value from
a node that changes it in place. A segment that may differ in a second run (an opaque module, a
write to a buffer or an input) is not recomputed.

    T. Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174, section 4.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from dcil_dsl.compiler.dual import Dual, method_of
from dcil_dsl.masking.split import split_weight
from dcil_dsl.model.dataflow import written_storages


def recompute_activations(dual: Dual, num_segments: int | None = None) -> Dual:
    """Run the training graphs of `dual` in segments, in place; None: about sqrt(n) segments."""
    for (training, phase), graph in dual.graphs.items():
        if training:
            dual.forwards[training, phase] = Segmented(dual, graph, num_segments)
    return dual


@dataclass(frozen=True)
class Segment:
    """forward(dual, *reads) -> the values of `writes`, which later segments read.

    is_plain   it runs once and keeps its activations
    last_read  the values that no later segment reads
    modules    the modules that it calls
    """

    forward: Callable[..., Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    last_read: tuple[str, ...]
    is_plain: bool
    modules: tuple[str, ...]


class Segmented:
    """The forward of a graph in segments."""

    def __init__(self, dual: Dual, graph: fx.Graph, num_segments: int | None = None):
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in graph.nodes if node.op == "output")
        early = early_nodes(graph)
        nodes = [n for n in graph.nodes if n.op.startswith("call") and n not in early]
        stretches = [(inputs, True), ([n for n in graph.nodes if n in early], True)]
        stretches += _stretches(graph, dual, nodes, num_segments)
        stretches.append(([output], True))
        self.segments = _segments(dual, [s for s in stretches if s[0] or s is stretches[0]])

    def __call__(self, dual: Dual, *args: Any, **kwargs: Any) -> object:
        first, *rest = self.segments
        values: dict[str, Any] = {}
        values |= zip(first.writes, first.forward(dual, *args, **kwargs), strict=True)
        for segment in rest:
            given = [values[name] for name in segment.reads]
            if segment.is_plain or not torch.is_grad_enabled():
                made = segment.forward(dual, *given)
            else:
                made = _checkpointed(dual, segment, given)
            if segment is rest[-1]:
                return made
            values |= zip(segment.writes, made, strict=True)
            for name in segment.last_read:
                del values[name]
        raise AssertionError("a graph has an output")


def _checkpointed(dual: Dual, segment: Segment, given: list[Any]) -> Any:
    buffers = {id(buffer) for buffer in dual.buffers()}
    modules = [dual.get_submodule(name) for name in segment.modules]
    modules += [value for value in given if isinstance(value, nn.Module)]
    is_again = False

    @contextmanager
    def again() -> Iterator[None]:
        nonlocal is_again
        is_again = True
        try:
            with _stand_ins(modules):
                yield
        finally:
            is_again = False

    def forward(*values: Any) -> Any:
        if is_again:
            values = tuple(v.clone() if id(v) in buffers else v for v in values)
        return segment.forward(dual, *values)

    return checkpoint(
        forward, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
    )


@contextmanager
def _stand_ins(modules: list[nn.Module]) -> Iterator[None]:
    """While the `with` is open, the modules have copies of their buffers."""
    inner = dict.fromkeys(module for outer in modules for module in outer.modules())
    kept = {module: dict(module._buffers) for module in inner}
    for module, buffers in kept.items():
        module._buffers.update({n: b if b is None else b.clone() for n, b in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in kept.items():
            module._buffers.update(buffers)


def forward_of(
    dual: Dual, nodes: Iterable[fx.Node], reads: Iterable[fx.Node], result: Any
) -> Callable[..., Any]:
    """(dual, *values of `reads`) -> `result`, a structure of nodes among `nodes` and `reads`."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in reads:
        copies[node] = graph.placeholder(node.name)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(result, copies.__getitem__))
    return method_of(graph)


def early_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The attributes of the model and the paths' views of weights."""
    early: set[fx.Node] = set()
    for node in graph.nodes:
        views = node.op == "call_function" and node.target in (split_weight, operator.getitem)
        if node.op == "get_attr" or views and all(n in early for n in node.all_input_nodes):
            early.add(node)
    return early


def _stretches(
    graph: fx.Graph, model: nn.Module, nodes: list[fx.Node], num: int | None
) -> list[tuple[list[fx.Node], bool]]:
    """The nodes in pieces of about the same number, each with whether it is plain."""
    place = {node: index for index, node in enumerate(nodes)}
    joined: set[int] = set()  # indices of nodes that stay with the node before
    plain: set[int] = set()  # indices of nodes that run once
    for index, node in enumerate(nodes):
        if node.meta.get("opaque") is not None:
            plain.add(index)
    for storage in written_storages(graph, model):
        first = min((place[n] for n in storage.members if n in place), default=0)
        last = max(place[n] for n in storage.writers)
        joined.update(range(first + 1, last + 1))
        if any(node.op in ("placeholder", "get_attr") for node in storage.members):
            plain.update(range(first, last + 1))
    size = len(nodes) / (num or max(1, round(math.sqrt(len(nodes)))))
    pieces: list[list[fx.Node]] = []
    for index, node in enumerate(nodes):
        is_due = not pieces or len(pieces[-1]) >= size or (index in plain) != (index - 1 in plain)
        if is_due and index not in joined or not pieces:
            pieces.append([])
        pieces[-1].append(node)
    return [(piece, any(place[node] in plain for node in piece)) for piece in pieces]


def _segments(dual: Dual, stretches: list[tuple[list[fx.Node], bool]]) -> list[Segment]:
    of = {node: i for i, (stretch, _) in enumerate(stretches) for node in stretch}
    last = {node: max((of[user] for user in node.users), default=of[node]) for node in of}
    segments = []
    for i, (stretch, is_plain) in enumerate(stretches):
        outside = [n for node in stretch for n in node.all_input_nodes if of[n] < i]
        reads = list(dict.fromkeys(outside))
        writes = [node for node in stretch if last[node] > i]
        # The last segment returns the output of the graph.
        result = tuple(writes) if i < len(stretches) - 1 else stretch[0].args[0]
        nodes = [node for node in stretch if node.op != "output"]
        segments.append(
            Segment(
                forward_of(dual, nodes, reads, result),
                tuple(node.name for node in reads),
                tuple(node.name for node in writes),
                tuple(node.name for node in reads if last[node] == i),
                is_plain,
                tuple(str(node.target) for node in stretch if node.op == "call_module"),
            )
        )
    return segments
