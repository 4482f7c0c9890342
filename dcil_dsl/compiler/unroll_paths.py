"""Unroll the graph into one dataflow per path.

In:   a graph with lifted weights, the paths that run, the weights and modules that differ.
Out:  a graph whose output is {path: output}; nodes of one path have meta["path"].
Not:  no views: all paths still read the same weights (route_gradients.py) and call the same
      private modules (privatize.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch.nn.functional as F
from torch import fx, nn

from dcil_dsl.compiler.privatize import is_within
from dcil_dsl.model.calls import copy_tensors, subsample_input
from dcil_dsl.model.dataflow import Storage, argument, reached_from, written_storages
from dcil_dsl.model.side_effects import draw_again, random_state

# Parts of the names of functions and arguments that indicate random numbers.
RANDOM = ("drop", "stochastic", "rand", "bernoulli", "multinomial", "normal", "uniform")


def unroll_paths(
    graph: fx.Graph,
    model: nn.Module,
    paths: tuple[str, ...],
    pruned: frozenset[str],
    private: frozenset[str],
    redraws: frozenset[str] = frozenset(),
    thin: Mapping[str, tuple[float, float]] = {},
) -> fx.Graph:
    """Copy once per path every node that differs between the paths.

          x                      x
          |                      |
        stem       ==>         stem                    computed once
          |                    /   \\
        conv                 conv   conv               one weight, later two views
          |                   |      |
         out                sparse  dense

    The paths are unrolled rather than switched by a flag, so that one call of forward runs
    all of them: one forward per backward, and nothing for torch.compile to guard on. All nodes
    of one path come before those of the next, so random numbers are drawn in the order of
    separate forwards.

    A value that a path changes in place belongs to that path: values that share its memory are
    computed once per path, and each path gets a copy of an input that is changed.

    redraws  the paths that draw the same random numbers as the first path
    thin     the paths with subsampled inputs, (share of the batch, size); they share no value
             that depends on an input
    """
    storages = written_storages(graph, model)
    first = _first_to_differ(graph, model, pruned, private)
    # A statistic that the forward updates itself is updated once per path, as in a batch norm.
    kept = [s for s in storages if any(node.op == "get_attr" for node in s.members)]
    first += [writer for storage in kept for writer in storage.writers]
    if len(paths) == 1:
        first += [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    differing = _with_what_they_change(graph, reached_from(graph, first), storages)
    changed = {
        node
        for storage in storages
        for node in storage.members
        if node.op == "placeholder" and differing.intersection(storage.writers)
    }
    unrolled = fx.Graph()
    shared: dict[fx.Node, fx.Node] = {}

    def share(node: fx.Node) -> fx.Node:
        if node not in shared:
            for needed in node.all_input_nodes:
                share(needed)
            shared[node] = unrolled.node_copy(node, shared.__getitem__)
        return shared[node]

    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        share(node)
    written = {node for storage in storages for node in storage.members}
    # Before any node writes in place.
    thinned = {
        path: {n: _thin(unrolled, shared[n], path, thin[path], n in written) for n in inputs}
        for path in paths
        if path in thin
    }
    # Shared nodes that write in place keep their order, whoever reads them first.
    for node in reached_in_order(graph, inputs + [n for s in storages for n in s.members]):
        if node not in differing and node.op != "output":
            share(node)

    state = None
    if redraws.intersection(paths[1:]) and any(may_draw(n, model) for n in differing):
        opaque = [n.args[0] for n in graph.nodes if n in differing and "opaque" in n.meta]
        owners = dict.fromkeys(n for n in opaque if isinstance(n, fx.Node))
        state = unrolled.call_function(random_state, tuple(map(share, owners)))
    of_inputs = differing | reached_from(graph, inputs)
    outputs = {}
    for path in paths:
        own = of_inputs if path in thin else differing
        if state is not None and path in redraws and path != paths[0]:
            again = unrolled.call_function(draw_again, (state,))
            again.name, again.meta["path"] = f"draw_again_{path}", path
        env: dict[fx.Node, fx.Node] = dict(thinned.get(path, {}))
        for node in graph.nodes:
            if node in changed and path not in thin and len(paths) > 1:
                env[node] = unrolled.call_function(copy_tensors, (shared[node],))
                env[node].name, env[node].meta["path"] = f"{node.name}_{path}", path
            if node.op == "output":
                outputs[path] = fx.map_arg(node.args[0], lambda n: env[n] if n in env else share(n))
            elif node in own and node.op != "placeholder":
                copied = unrolled.node_copy(node, lambda n: env[n] if n in env else share(n))
                copied.meta["path"] = path
                if len(paths) > 1:
                    copied.name = f"{node.name}_{path}"
                env[node] = copied
    unrolled.output(outputs)
    return unrolled


def _thin(
    graph: fx.Graph, node: fx.Node, path: str, how: tuple[float, float], is_written: bool
) -> fx.Node:
    """A path's subsampled input; a copy of one that a node writes to."""
    given = node
    if is_written:
        given = graph.call_function(copy_tensors, (node,))
        given.meta["path"] = path
    thinned = graph.call_function(subsample_input, (given, *how))
    thinned.name, thinned.meta["path"] = f"{node.name}_{path}", path
    return thinned


def reached_in_order(graph: fx.Graph, sources: list[fx.Node]) -> list[fx.Node]:
    """The nodes that depend on the sources, in the order of the graph."""
    reached = reached_from(graph, sources)
    return [node for node in graph.nodes if node in reached]


def _first_to_differ(
    graph: fx.Graph, model: nn.Module, pruned: frozenset[str], private: frozenset[str]
) -> list[fx.Node]:
    """The nodes that differ between paths whatever their inputs are."""
    first = []
    for node in graph.nodes:
        reads_pruned = any(n.op == "get_attr" and n.target in pruned for n in node.all_input_nodes)
        is_private = node.op in ("call_module", "get_attr") and is_within(str(node.target), private)
        if reads_pruned or is_private or node.meta.get("stateful") or _is_random(node, model):
            first.append(node)
    return first


def _with_what_they_change(
    graph: fx.Graph, differing: set[fx.Node], storages: tuple[Storage, ...]
) -> set[fx.Node]:
    """The differing nodes, and every node on a storage that one path would change for another.

    Paths share a storage if all writes to it are shared and the paths only read it, after the last
    write. Otherwise every node that touches it differs: its value would depend on the writes of
    another path.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    # A node that touches a storage before its last write disturbs it.
    disturbs: dict[fx.Node, list[Storage]] = {}
    for storage in storages:
        last = max(order[writer] for writer in storage.writers)
        for node in storage.touching():
            if order[node] <= last:
                disturbs.setdefault(node, []).append(storage)
    differing, waiting = set(differing), list(differing)
    disturbed: set[Storage] = set()
    while waiting:
        node = waiting.pop()
        reached = set(node.users)
        for storage in disturbs.get(node, ()):
            if storage not in disturbed:
                disturbed.add(storage)
                reached |= storage.touching()
        waiting += reached - differing
        differing |= reached
    return differing


def may_draw(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node may draw random numbers; an opaque module always may."""
    return "opaque" in node.meta or _is_random(node, model)


def _is_random(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node that is not opaque may draw random numbers, by its name and arguments."""
    function = node.target
    if isinstance(function, str):
        if node.op == "call_method":
            return any(word in function for word in RANDOM)
        if node.op != "call_module":
            return False
        module = model.get_submodule(function)
        return "drop" in type(module).__name__.lower() or isinstance(module, nn.RReLU)
    if node.meta.get("layer"):
        parts = model.get_submodule(node.meta["layer"]).modules()
        return any(
            "drop" in type(part).__name__.lower() or getattr(part, "dropout", 0.0) != 0.0
            for part in parts
        )
    home = (getattr(function, "__module__", None) or "").split(".")[0]
    if any(word in function.__name__ for word in RANDOM):
        return True
    if function is F.scaled_dot_product_attention and len(node.args) > 4:
        return bool(node.args[4] != 0)
    if home in ("torch", "_operator", "builtins", "math", ""):
        return bool(argument(node, "dropout_p"))
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return any(word in name for name in names for word in RANDOM)
