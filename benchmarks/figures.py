"""The figures and tables of docs/results.md, from the table that compare.py writes.

    python benchmarks/figures.py benchmarks/results/methods.csv --out docs/figures
        [--methods dense,gmp,dcil] [--name cheaper]

Needs matplotlib (the extra `figures`). Every mark is a mean over seeds, every band reaches from the
least to the largest of them; nothing is smoothed. What is drawn together differs in one thing only;
the rest stands in the title. --methods draws and lists those alone, under the --name.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# By the order in which a reader knows them; a method keeps its colour in every figure.
ORDER = ("dense", "gmp", "dpf", "st3", "acdc", "dcil")
COLOURS = plt.get_cmap("tab10").colors + plt.get_cmap("Dark2").colors
MARKERS = "osD^vP*X"
FORMAT = "svg"
AT_THE_END = "of the last epoch"


@dataclass(frozen=True)
class Setting:
    """What the runs of one figure have in common."""

    network: str
    data: str
    split: str
    examples: int
    image_size: int
    overrides: str
    start: str
    clients: int

    @property
    def accuracy(self) -> str:
        """Which accuracy its runs measured."""
        return f"{'validation' if self.split == 'validation' else 'test'} accuracy"

    def told(self, what: str) -> str:
        """The setting, and what is drawn or listed of it."""
        images = f"{self.examples:,} images" if self.examples else "all images"
        size = f" of {self.image_size} px" if self.image_size else ""
        return "; ".join(
            filter(
                None,
                (
                    f"{self.network}, {self.data}, {images}{size}",
                    self.overrides,
                    self.start and f"from {self.start}",
                    self.clients and f"{self.clients} clients",
                    what,
                ),
            )
        )


@dataclass(frozen=True)
class Curve:
    """Runs that differ in the seed alone."""

    method: str
    target: float
    epochs: int
    passes: float
    recipe: str


class Table:
    """The rows of the CSV: setting -> curve -> (measure, at) -> values, one a seed."""

    def __init__(self, file: Path, only: list[str]):
        self.settings: dict[Setting, dict[Curve, dict[tuple[str, str], list[float]]]] = {}
        with open(file, newline="") as opened:
            for row in csv.DictReader(opened):
                setting = Setting(
                    row["network"],
                    row["data"],
                    row["split"],
                    int(row["examples"]),
                    int(row["image_size"]),
                    row["overrides"],
                    row["start"],
                    int(row["clients"]),
                )
                if only and row["method"] not in only:
                    continue
                curve = Curve(
                    row["method"],
                    float(row["target"]),
                    int(row["epochs"]),
                    float(row["passes"]),
                    row["recipe_sha256"],
                )
                curves = self.settings.setdefault(setting, {})
                values = curves.setdefault(curve, defaultdict(list))
                values[row["measure"], row["at"]].append(float(row["value"]))


def main(arguments: list[str] | None = None) -> int:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("table", type=Path)
    asked.add_argument("--out", type=Path, required=True, help="a folder")
    asked.add_argument("--methods", default="", help="those alone")
    asked.add_argument("--name", help="of the files; default: the table's")
    asked = asked.parse_args(arguments)
    only = asked.methods.split(",") if asked.methods else []
    asked.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(
        {
            "font.size": 9,
            "svg.hashsalt": "dcil",
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )
    for number, (setting, curves) in enumerate(Table(asked.table, only).settings.items(), 1):
        stem = asked.out / f"{asked.name or asked.table.stem}-{number}"
        accuracy_by_sparsity(setting, curves, stem)
        accuracy_by_cost(setting, curves, stem)
        by_epoch(setting, curves, "top1", "accuracy, %", setting.accuracy, stem)
        flips = "weights that changed side"
        by_epoch(setting, curves, "mask_flips", flips, flips, stem)
        density_by_layer(setting, curves, stem)
        print(f"## {setting.told(f'{setting.accuracy} {AT_THE_END}')}\n\n{markdown(curves)}")
    return 0


# -- figures ---------------------------------------------------------------------------------------


def accuracy_by_sparsity(setting: Setting, curves: dict, stem: Path) -> None:
    """One panel for equal epochs, one for equal passes; dense training as a line across."""
    panels = [("epochs", n) for n in sorted({c.epochs for c in curves})]
    panels += [("passes", n) for n in sorted({c.passes for c in curves})]
    panels = [panel for panel in panels if _is_comparison(curves, *panel)]
    if not panels:
        return
    targets = sorted({c.target for c in curves} - {0.0})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.8 * len(panels) + 1.2, 4.2), sharey=True, squeeze=False
    )
    for axis, (kind, number) in zip(axes[0], panels, strict=True):
        here = {c: v for c, v in curves.items() if getattr(c, kind) == number}
        for method in methods(here):
            own = sorted((c for c in here if c.method == method), key=lambda c: c.target)
            values = [[100 * x for x in here[c]["top1", "end"]] for c in own]
            if own[0].target == 0:
                axis.axhline(statistics.mean(values[0]), color=colour(method), lw=1, ls="--")
                axis.plot([], [], color=colour(method), ls="--", label=method)
                continue
            line(axis, [targets.index(c.target) for c in own], values, method)
        axis.set_xticks(range(len(targets)), [f"{target:g}" for target in targets])
        what = "epochs each" if kind == "epochs" else "dense epochs of cost"
        axis.set_title(f"{number:g} {what}")
        axis.set_xlabel("zeros in the convolutions, %")
    axes[0][0].set_ylabel("accuracy, %")
    legend(figure, axes[0])
    save(figure, setting, f"{setting.accuracy} {AT_THE_END}", f"{stem}-sparsity")


def accuracy_by_cost(setting: Setting, curves: dict, stem: Path) -> None:
    """Accuracy against passes over the data, a panel for each target."""
    targets = sorted({c.target for c in curves} - {0.0})
    if not targets:
        return
    figure, axes = plt.subplots(
        1, len(targets), figsize=(3.2 * len(targets) + 1.2, 3.8), sharey=True, squeeze=False
    )
    for axis, target in zip(axes[0], targets, strict=True):
        here = {c: v for c, v in curves.items() if c.target in (target, 0.0)}
        for method in methods(here):
            own = sorted((c for c in here if c.method == method), key=lambda c: c.passes)
            values = [[100 * x for x in here[c]["top1", "end"]] for c in own]
            line(axis, [c.passes for c in own], values, method)
        axis.set_title(f"{target:g} % zeros")
        axis.set_xlabel("cost, epochs of dense training")
    axes[0][0].set_ylabel("accuracy, %")
    legend(figure, axes[0])
    save(figure, setting, f"{setting.accuracy} {AT_THE_END}", f"{stem}-cost")


def by_epoch(
    setting: Setting, curves: dict, measure: str, label: str, what: str, stem: Path
) -> None:
    """A measure over the run, a panel for each target, at the length that most methods ran."""
    targets = sorted({c.target for c in curves} - {0.0})
    if not targets:
        return
    epochs = statistics.mode(c.epochs for c in curves)
    figure, axes = plt.subplots(
        1, len(targets), figsize=(3.2 * len(targets) + 1.2, 3.8), sharey=True, squeeze=False
    )
    for axis, target in zip(axes[0], targets, strict=True):
        here = {c: v for c, v in curves.items() if c.target == target and c.epochs == epochs}
        for curve in sorted(here, key=lambda c: rank(c.method)):
            at = [n for n in range(1, epochs + 1) if (measure, str(n)) in here[curve]]
            values = [here[curve][measure, str(n)] for n in at]
            scale = 100 if measure == "top1" else 1
            line(axis, at, [[scale * x for x in v] for v in values], curve.method, marker="")
        axis.set_title(f"{target:g} % zeros")
        axis.set_xlabel("epoch")
        if measure == "mask_flips":
            axis.set_yscale("symlog")
    axes[0][0].set_ylabel(label)
    legend(figure, axes[0])
    save(figure, setting, f"{what} by epoch, runs of {epochs} epochs", f"{stem}-{measure}")


def density_by_layer(setting: Setting, curves: dict, stem: Path) -> None:
    """Where the weights went: the share that each layer keeps, at the highest target."""
    targets = sorted({c.target for c in curves} - {0.0})
    if not targets:
        return
    epochs = statistics.mode(c.epochs for c in curves)
    figure, axis = plt.subplots(figsize=(9, 4.4))
    for curve in sorted(curves, key=lambda c: rank(c.method)):
        layers = [at for measure, at in curves[curve] if measure == "density"]
        if curve.target != targets[-1] or curve.epochs != epochs or not layers:
            continue  # federated rounds measure no layers
        values = [[100 * x for x in curves[curve]["density", at]] for at in layers]
        line(axis, range(len(layers)), values, curve.method)
        names = [at.removesuffix(".weight") for at in layers]
        axis.set_xticks(range(len(layers)), names, rotation=75, fontsize=7)
    if not axis.lines:
        plt.close(figure)
        return
    axis.set_yscale("log")
    axis.set_ylabel("weights kept, %")
    axis.set_title(f"{targets[-1]:g} % zeros, {epochs} epochs")
    legend(figure, [axis])
    save(figure, setting, "the share of its weights that each layer keeps", f"{stem}-layers")


def line(axis, x, values: list[list[float]], method: str, marker: str | None = None) -> None:
    """Means with a band from least to largest."""
    mark = MARKERS[rank(method) % len(MARKERS)] if marker is None else marker
    x = list(x)
    axis.plot(
        x,
        [statistics.mean(v) for v in values],
        color=colour(method),
        marker=mark,
        ms=4,
        lw=1.3,
        label=method,
    )
    axis.fill_between(
        x,
        [min(v) for v in values],
        [max(v) for v in values],
        color=colour(method),
        alpha=0.15,
        lw=0,
    )


def legend(figure, axes) -> None:
    """One for all panels, to the right of them: a method may be in some panels only."""
    named = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    labels = sorted(named, key=rank)
    handles = [named[label] for label in labels]
    axes[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _is_comparison(curves: dict, kind: str, number: float) -> bool:
    here = [c for c in curves if getattr(c, kind) == number]
    pruned = {c.target for c in here} - {0.0}
    only_one_length = kind == "passes" and {c.epochs for c in here} == {int(number)}
    return len({c.method for c in here}) > 2 and bool(pruned) and not only_one_length


def save(figure, setting: Setting, what: str, stem: str) -> None:
    """Under a title that says of which runs it is, and what of them is drawn."""
    figure.suptitle(setting.told(what), fontsize=8)
    figure.tight_layout()
    figure.savefig(f"{stem}.{FORMAT}", metadata={"Date": None})
    plt.close(figure)


_seen: list[str] = []


def rank(method: str) -> int:
    if method in ORDER:
        return ORDER.index(method)
    if method not in _seen:
        _seen.append(method)
    return len(ORDER) + _seen.index(method)


def colour(method: str):
    return COLOURS[rank(method) % len(COLOURS)]


def methods(curves: dict) -> list[str]:
    return sorted(sorted({curve.method for curve in curves}), key=rank)  # sets have no order


# -- tables ----------------------------------------------------------------------------------------


def markdown(curves: dict) -> str:
    """Mean and sample standard deviation of the last epoch, in percent, and the number of seeds;
    `recipe` is the beginning of the SHA-256 of its text, as the CSV has it."""
    targets = sorted({c.target for c in curves} - {0.0})
    columns = [f"{target:g} %" for target in targets]
    lines = [f"| method | epochs | cost | {' | '.join(columns)} | recipe |"]
    lines.append("|" + "---|" * (4 + len(targets)))
    rows: dict[tuple, dict[float, list[float]]] = defaultdict(dict)
    for curve, values in curves.items():
        key = (rank(curve.method), curve.method, curve.epochs, curve.passes, curve.recipe)
        rows[key][curve.target] = values["top1", "end"]
    for (_, method, epochs, passes, recipe), row in sorted(rows.items()):
        cells = [
            shown(row.get(target, row.get(0.0) if method == "dense" else None))
            for target in targets
        ]
        cells = " | ".join(cells)
        lines.append(f"| {method} | {epochs} | {passes:g} | {cells} | {recipe[:8]} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float] | None) -> str:
    if not values:
        return ""
    mean = 100 * statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f} (1)"
    return f"{mean:.2f} +- {100 * statistics.stdev(values):.2f} ({len(values)})"


if __name__ == "__main__":
    sys.exit(main())
