"""The table and the figure of deploy.py.

In:   the rows of its file.
Out:  Markdown; an SVG with the speed of the sparse kernels over the best dense float32 engine.
Not:  nothing is measured.

A speed is the median over the rounds of the ratio of two engines in the same round.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

DENSE_FP32 = ("onnxruntime", "openvino", "torch", "torch-compiled")
DENSE_OTHER = ("openvino-bf16", "onnxruntime-int8", "openvino-int8", "openvino-int8-sparse")
# Of the table: its heading, and the engines of which it has the fastest.
COLUMNS = {
    "dcil 80%": ("dcil 80%",),
    "dcil 90%": ("dcil 90%",),
    "dcil 95%": ("dcil 95%",),
    "dcil 90%, AVX2": ("dcil-avx2 90%",),
    "dense bf16": ("openvino-bf16",),
    "int8": ("onnxruntime-int8", "openvino-int8", "openvino-int8-sparse"),
}

Entry = dict[str, Any]


def name_of(one: Entry) -> str:
    """An engine with its sparsity."""
    share = one["sparsity"]
    return one["engine"] if share is None else f"{one['engine']} {100 * share:g}%"


def base_of(row: Entry) -> Entry | None:
    """The dense float32 engine with the least median."""
    known = [one for one in row["times"] if one["engine"] in DENSE_FP32 and one["seconds"]]
    return min(known, key=lambda one: one["median"], default=None)


def speed(one: Entry, base: Entry) -> float:
    """How many times as fast as `base`."""
    return statistics.median(b / a for a, b in zip(one["seconds"], base["seconds"], strict=True))


def table(rows: list[Entry]) -> str:
    """A line for each network, batch size and number of threads.

    The columns are COLUMNS; where one names several engines, it has the fastest of them.
    """
    head = ["network", "batch", "threads", "best dense fp32, ms", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    problems: dict[str, None] = {}
    for row in rows:
        base = base_of(row)
        cells = [row["network"], str(row["batch"]), str(row["threads"])]
        cells.append("-" if base is None else f"{1000 * base['median']:.2f} {base['engine']}")
        for names in COLUMNS.values():
            found = [one for one in row["times"] if name_of(one) in names and one["seconds"]]
            speeds = [speed(one, base) for one in found if base is not None]
            cells.append(f"{max(speeds):.2f}" if speeds else "-")
        lines.append("| " + " | ".join(cells) + " |")
        problems |= {
            f"{row['network']}: {name_of(one)}: {one['problem'][:90]}": None
            for one in row["times"]
            if one.get("problem")
        }
    return "\n".join([*lines, *(["", *problems] if problems else [])])


def draw(rows: list[Entry], file: Path) -> None:
    """A panel for each batch size and number of threads, a group of bars for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "dcil", "legend.frameon": False})
    panels = sorted({(row["batch"], row["threads"]) for row in rows})
    networks = list(dict.fromkeys(row["network"] for row in rows))
    names = ["dcil 80%", "dcil 90%", "dcil 95%", "dcil-avx2 90%", *DENSE_OTHER]
    present = {name_of(one) for row in rows for one in row["times"] if one["seconds"]}
    names = [name for name in names if name in present]
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.5, 1.9 * len(panels) + 0.4), squeeze=False, layout="constrained"
    )
    for axis, (batch, threads) in zip(axes[:, 0], panels):
        found = {r["network"]: r for r in rows if (r["batch"], r["threads"]) == (batch, threads)}
        for place, network in enumerate(networks):
            row = found.get(network)
            base = None if row is None else base_of(row)
            if row is None or base is None:
                continue
            known = {name_of(one): one for one in row["times"] if one["seconds"]}
            for number, name in enumerate(names):
                if name not in known:
                    continue
                value = speed(known[name], base)
                x = place + 0.85 * (number + 0.5) / len(names) - 0.425
                axis.bar(x, value, 0.8 / len(names), color=colours[number % 10])
                axis.text(x, value, f"{value:.1f}", ha="center", va="bottom", fontsize=5)
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set_xticks(range(len(networks)), networks)
        axis.set_ylabel("speed over the best\ndense float32 engine")
        axis.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[i % 10]) for i in range(len(names))]
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
