"""A compiled graph as text: what `dcil graph` prints, and its summary in a few lines.

In:   a Dual.
Out:  the code of every graph that it chooses among; counts.
Not:  nothing is run.
"""

from __future__ import annotations

import re

from torch import fx

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.privatize import is_within, twin_names
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.plan import Phase


def show_graph(dual: Dual) -> str:
    """The code for training, phase by phase, and for evaluation, each under a comment."""
    parts = [
        f"# training, {_window(phase)}: {', '.join(phase.paths)}\n{_code(dual, True, index)}"
        for index, phase in enumerate(dual.plan.phases)
    ]
    names = ", ".join(path.name for path in dual.plan.paths)
    parts.append(f"# evaluation: {names}\n{_code(dual, False, 0)}")
    return "\n\n".join(parts) + "\n"


def show_summary(dual: Dual) -> str:
    """Counts of calls by phase, of masks and of the twins' parameters."""
    lines = ["graph"]
    for index, phase in enumerate(dual.plan.phases):
        calls = sum(node.op.startswith("call") for node in dual.graphs[True, index].nodes)
        paths = count(len(phase.paths), "path")
        lines.append(f"  training, {_window(phase)}: {count(calls, 'call')} for {paths}")
    twins = frozenset(twin_names(dual.plan))
    extra = sum(p.numel() for name, p in dual.named_parameters() if is_within(name, twins))
    masked = sum(mask.numel() for mask in dual.masks.values())
    lines.append(
        f"  {count(len(dual.masks), 'mask')} of {count(masked, 'byte')}; "
        f"{extra:,} numbers more in the twins of private modules"
    )
    return "\n".join(lines) + "\n"


def _window(phase: Phase) -> str:
    stop = "the end" if phase.window.stop is None else f"step {phase.window.stop:,}"
    return f"step {phase.window.start:,} to {stop}"


def _code(dual: Dual, training: bool, phase: int) -> str:
    return code_of(dual.graphs[training, phase])


def code_of(graph: fx.Graph) -> str:
    """fx's own code for a graph, without the deletions that end each line and with short names.

    y = dcil_dsl_masking_apply_apply_layer(a, x);  a = x = None   ==>   y = apply_layer(a, x)
    """
    code = graph.python_code("self").src.strip()
    code = re.sub(r";  (\w+ = )+None$", "", code, flags=re.MULTILINE)
    code = re.sub(r"(\w+) : _?[\w.]*Tensor_?", r"\1", code)
    code = re.sub(r"\bdcil_dsl_masking_(?:apply|split)_", "", code)
    return re.sub(r'getattr\((self[\w.]*), "(\w+)"\)', r"\1[\2]", code)
