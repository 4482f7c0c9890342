"""What follows from what in a graph.

In:   an fx graph.
Out:  the nodes that depend on given ones.
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
