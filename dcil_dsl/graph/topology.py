"""The dataflow of a graph, for questions of reachability.

In:   an fx graph.
Out:  a networkx.DiGraph over its nodes, and answers about what follows from what.
Not:  nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
from torch import fx


def dataflow(graph: fx.Graph) -> nx.DiGraph:
    """An edge from each node to each of its users."""
    flow = nx.DiGraph()
    flow.add_nodes_from(graph.nodes)
    flow.add_edges_from((node, user) for node in graph.nodes for user in node.users)
    return flow


def reached_from(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The sources and every node that depends on one of them."""
    flow, reached = dataflow(graph), set(sources)
    for source in list(reached):
        reached |= nx.descendants(flow, source)
    return reached
