"""The table of an exported network: each layer, its zeros, and what runs it.

In:   a CpuNetwork.
Out:  text.
Not:  nothing is timed here (extras/bench).
"""

from __future__ import annotations

from math import prod

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.cpu.build import Library
from dcil_dsl.extras.cpu.network import CpuNetwork
from dcil_dsl.extras.cpu.program import ProgramCall
from dcil_dsl.plan.text import shorten, table


def show_network(network: CpuNetwork) -> str:
    """The layers, the functions that torch runs, and the sizes, as text."""
    lines = network.lines()
    header = ("layer", "kind", "weight", "not zero", "zeros", "runs on", "why")
    rows = [
        (
            shorten(line.layer, 40),
            line.op,
            "x".join(map(str, line.shape)),
            f"{line.num_nonzero:,}",
            f"{100 * (1 - line.num_nonzero / max(prod(line.shape), 1)):.1f}%",
            line.where,
            line.reason,
        )
        for line in lines
    ]
    shown = table(header, rows, "lllrrll")
    calls: dict[str, int] = {}
    for operation in network.program.operations:
        if isinstance(operation, ProgramCall) and operation.function.startswith("aten."):
            name = operation.function.split(".")[1]
            calls[name] = calls.get(name, 0) + 1
    if calls:
        words = ", ".join(f"{name} ({number})" for name, number in sorted(calls.items()))
        shown += ["", f"functions that torch runs: {words}"]
    size = sum(entry.num_bytes for entry in network.stored.values())
    nonzero = sum(line.num_nonzero for line in lines)
    weights = sum(prod(line.shape) for line in lines)
    zeros = f"{100 * (1 - nonzero / weights):.1f}%" if weights else "-"
    shown += [
        "",
        f"{count(len(lines), 'layer')}, {weights:,} weights, {zeros} zeros; "
        f"{size / 1e6:.1f} MB of tensors",
        f"kernels: {_kernels(network.library)}",
    ]
    return "\n".join(shown) + "\n"


def _kernels(library: Library | str) -> str:
    if isinstance(library, str):
        return f"none: {library}"
    threads = "" if library.threads else ", one thread (compiled without OpenMP)"
    return f"compiled for this CPU, {library.lanes} floats per vector{threads}"
