"""What follows from what in a graph.

In:   an fx graph.
Out:  the nodes that depend on given ones; those that a structure names.
Not:  nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx


def reached_from(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The sources and every node that depends on one of them."""
    reached = set(sources)
    waiting = list(reached)
    while waiting:
        new = [user for user in waiting.pop().users if user not in reached]
        reached.update(new)
        waiting += new
    return reached


def nodes_in(structure: object) -> list[fx.Node]:
    """The nodes in an argument of a node, in order."""
    found: list[fx.Node] = []
    fx.map_arg(structure, found.append)
    return found
