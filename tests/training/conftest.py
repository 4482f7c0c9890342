"""What the tests of training share."""

import pytest
import torch


@pytest.fixture
def graphs_compiled(monkeypatch):
    """The graphs that torch.compile is given from now on; each runs as it stands, uncompiled."""
    graphs, compiler = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **more: compiler(f, backend=backend, **more))
    return graphs
