"""Show the graphs of a Dual as code, as `dcil graph` prints them, and as a summary."""

from __future__ import annotations

import re

from torch import fx

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.privatize import is_within, twin_names
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.plan import Phase


def show_graph(dual: Dual) -> str:
    """The code for training, phase by phase, and for evaluation, each under a comment."""
    parts = []
    for index, phase in enumerate(dual.plan.phases):
        head = f"# training, {_window(phase)}: {', '.join(phase.paths)}\n"
        parts.append(head + code_of(dual.graphs[True, index]))
    names = ", ".join(path.name for path in dual.plan.paths)
    parts.append(f"# evaluation: {names}\n{code_of(dual.graphs[False, 0])}")
    return "\n\n".join(parts) + "\n"


def show_summary(dual: Dual) -> str:
    """The numbers of calls in each phase, of masks and of parameters of twins."""
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
        f"{extra:,} more parameters in the twins of private modules"
    )
    return "\n".join(lines) + "\n"


def _window(phase: Phase) -> str:
    stop = "the end" if phase.window.stop is None else f"step {phase.window.stop:,}"
    return f"step {phase.window.start:,} to {stop}"


def code_of(graph: fx.Graph) -> str:
    """The code that fx generates, with short names and without the deletions at line ends.

    y = dcil_dsl_model_calls_apply_layer(a, x);  a = x = None   ==>   y = apply_layer(a, x)
    """
    code = graph.python_code("self").src.strip()
    code = re.sub(r";  (\w+ = )+None$", "", code, flags=re.MULTILINE)
    code = re.sub(r"(\w+) : _?[\w.]*Tensor_?", r"\1", code)
    code = re.sub(r"\bdcil_dsl_(?:masking_split|model_calls)_", "", code)
    return re.sub(r'getattr\((self[\w.]*), "(\w+)"\)', r"\1[\2]", code)
