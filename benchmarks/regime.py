"""Whether runs of compare.py could tell which weights to keep: how far they left initialisation.

    python benchmarks/regime.py benchmarks/results/methods.csv

For each method and sparsity, over the layers: the correlation of log density at the end with log
density at initialisation, and the share of the kept weights that lies in other layers than there.
Initialisation is one threshold over normal weights of each layer's own deviation, as the network
draws them. Then what twice the epochs are worth, paired by seed.

In:   a table of compare.py with densities by layer.
Out:  two tables in Markdown.
Not:  nothing is trained.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import paired
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from dcil_dsl.zoo import build_model

METHODS = ("gmp", "dcil", "st3", "dpf")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args(arguments)
    print(densities(asked.table, asked.methods.split(",")))
    print()
    print(doubling(asked.table, asked.methods.split(",")))
    return 0


def at_start(network: str, density: float) -> dict[str, float]:
    """The density of each convolution under one threshold at initialisation."""
    torch.manual_seed(0)
    weights = {n: p for n, p in build_model(network, 10).named_parameters() if p.dim() == 4}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    deviations = {name: float(weight.detach().std()) for name, weight in weights.items()}

    def kept(threshold: float) -> dict[str, float]:
        return {name: 2 * norm.sf(threshold / deviations[name]) for name in sizes}

    def excess(threshold: float) -> float:
        found = kept(threshold)
        return sum(found[n] * sizes[n] for n in sizes) / sum(sizes.values()) - density

    return kept(brentq(excess, 0.0, 10 * max(deviations.values())))


def moved(network: str, own: dict[str, float], start: dict[str, float]) -> float:
    """The share of the kept weights that lies in other layers than at the start."""
    sizes = {n: p.numel() for n, p in build_model(network, 10).named_parameters() if n in own}
    counts, before = ({n: d[n] * sizes[n] for n in own} for d in (own, start))
    return sum(max(counts[n] - before[n], 0) for n in own) / sum(counts.values())


def densities(table: Path, methods: list[str]) -> str:
    lines = ["| method | epochs | zeros | correlation with initialisation | moved, % | seeds |"]
    lines.append("|---|---|---|---|---|---|")
    for (network, method, target, epochs), runs in read_densities(table).items():
        if method not in methods:
            continue
        start, found = at_start(network, 1 - target / 100), []
        for run in runs.values():
            own = {name: run[name] for name in start}
            pairs = torch.tensor([[max(own[n], 1e-6), start[n]] for n in own]).log().T
            found.append((float(pairs.corrcoef()[0, 1]), 100 * moved(network, own, start)))
        correlation, share = (sum(values) / len(found) for values in zip(*found, strict=True))
        cells = f"{method} | {epochs} | {target:g} % | {correlation:.3f} | {share:.1f}"
        lines.append(f"| {cells} | {len(found)} |")
    return "\n".join(lines)


def read_densities(table: Path) -> dict[tuple, dict[str, dict[str, float]]]:
    """{(network, method, target, epochs): {seed: {layer: density}}} of the test runs."""
    runs: dict[tuple, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with open(table, newline="") as file:
        for row in csv.DictReader(file):
            if row["measure"] == "density" and row["split"] == "test":
                key = (row["network"], row["method"], float(row["target"]), int(row["epochs"]))
                runs[key][row["seed"]][row["at"]] = float(row["value"])
    return dict(sorted(runs.items()))


def doubling(table: Path, methods: list[str]) -> str:
    """What twice the cost is worth, in points."""
    arms = paired.read_arms(table)
    lines = [
        "| method | zeros | cost | points gained by twice the cost, pairs |",
        "|---|---|---|---|",
    ]
    for arm, values in arms.items():
        for other, twice in arms.items():
            same = arm.setting == other.setting and arm.recipe == other.recipe
            same = same and arm.settings == other.settings and arm.target == other.target
            if arm.method in (*methods, "dense") and same and other.passes == 2 * arm.passes:
                gained = [twice[seed] - values[seed] for seed in sorted(set(values) & set(twice))]
                text = paired.difference(gained)
                lines.append(f"| {arm.method} | {arm.target:g} % | {arm.passes:g} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
