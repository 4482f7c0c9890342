"""The numbers of a page: what its charts draw and its sentences say.

In:   RunRecords, and StoredWeights of each.
Out:  plain data for JSON; the verdict in a sentence.
Not:  no HTML (page.py) and no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dcil_dsl.extras.report.differences import densities
from dcil_dsl.extras.report.read import RunRecord
from dcil_dsl.extras.report.weights import StoredWeights
from dcil_dsl.plan.text import percent
from dcil_dsl.words.metrics import METRICS, metric_text

Points = list[dict[str, Any]]


def verdict(run: RunRecord, proof: str) -> str:
    """The result in a few sentences. proof: what verifying the stored file found."""
    result, plan = run.result, run.plan
    if not result:
        return f"The run has not finished its first epoch. {proof}"
    parts = []
    if run.state == "unfinished":
        parts.append(f"The run has not finished: step {result['step']:,} of {plan.num_steps:,}.")
    elif run.state == "cut short":
        parts.append(f"The run was cut short at step {result['step']:,} of {plan.num_steps:,}.")
    if any(layer.group is not None for layer in plan.layers):
        asked = percent(round(result["sparsity_asked"], 4))
        measured = percent(round(result["sparsity_measured"], 4))
        counts = result.get("counts", "weights")
        asks = f"asks for {asked} zeros of {counts}"
        if all(group.target.is_result for group in plan.groups):
            asks = "prunes by a threshold, and asks for no share"
        parts.append(f"The recipe {asks}; {measured} of the weights under rules are zero.")
    main = run.metrics[0] if run.metrics else ""
    named = []
    for path, values in result.get("accuracies", {}).items():
        if main in values:
            deployed = " (deployed)" if path == plan.deploy else ""
            named.append(f"{path}{deployed} {metric_text(main, values[main], '.2%')}")
    if named:
        parts.append(f"Held-out {main}: {', '.join(named)}.")
    parts.append(start_text(run))
    parts.append(f"Training cost {result['cost']:.2f} dense runs. {proof}")
    return " ".join(parts)


def start_text(run: RunRecord) -> str:
    """How good the network was before training, in a sentence."""
    main = run.metrics[0] if run.metrics else ""
    value = run.start.get("metrics", {}).get(main)
    if isinstance(value, (int, float)):
        return f"Before training, unpruned: {main} {metric_text(main, value, '.2%')}."
    if run.start.get("weights") == "random":
        classes = run.plan.model.classes
        chance = f", 1 in {classes}" if main == "top1" and classes else ""
        fact = "The run started from random weights: before training it is right by chance"
        return f"{fact}{chance}."
    return "The accuracy before training was not measured."


def chart_data(runs: Sequence[RunRecord], weights: Sequence[StoredWeights]) -> dict[str, Any]:
    """Everything that the script of the page draws."""
    metric = next((run.metrics[0] for run in runs if run.metrics), "")
    return {
        "runs": [run.name for run in runs],
        "metric": metric,
        "share": metric in METRICS and METRICS[metric].is_share,
        "metrics": [point for run in runs for point in _metric_points(run, metric)],
        "losses": [point for run in runs for point in _loss_points(run)],
        "sparsity": [point for run in runs for point in _sparsity_points(run)],
        "flips": [point for run in runs for point in _flip_points(run)],
        "layers": [point for run in runs for point in _layer_points(run)],
        "order": list(dict.fromkeys(name for run in runs for name in densities(run))),
        "histogram": [
            point for run, found in zip(runs, weights) for point in _histogram(run, found)
        ],
        "sensitivity": [point for run in runs for point in _sensitivity(run)],
    }


def _at(run: RunRecord, line: dict[str, Any]) -> dict[str, Any]:
    """Where a point of a curve lies. The cost is in dense training steps, alike for all runs."""
    cost = run.cost_at(line["step"]) * run.plan.num_steps
    return {"run": run.name, "step": line["step"], "cost": round(cost, 3)}


def _metric_points(run: RunRecord, metric: str) -> Points:
    return [
        _at(run, line) | {"series": path, "value": _finite(value)}
        for line in run.lines
        for path, value in (line.get(metric) or {}).items()
    ]


def _loss_points(run: RunRecord) -> Points:
    return [
        _at(run, line) | {"series": name.replace("cross_entropy", "ce"), "value": _finite(value)}
        for line in run.lines
        for name, value in line.get("losses", {}).items()
    ]


def _sparsity_points(run: RunRecord) -> Points:
    keys = {"asked": "sparsity_asked", "measured": "sparsity_measured"}
    return [
        _at(run, line) | {"series": series, "value": line[key]}
        for line in run.lines
        for series, key in keys.items()
        if key in line
    ]


def _flip_points(run: RunRecord) -> Points:
    """Weights that changed side in an epoch, as a share of those under rules."""
    size = sum(sum(group.num_weights) for group in run.plan.groups)
    keys = {"flipped": "mask_flips", "revived": "mask_revived"}
    return [
        _at(run, line) | {"series": series, "value": line[key] / size, "count": line[key]}
        for line in run.lines
        for series, key in keys.items()
        if size and key in line
    ]


def _layer_points(run: RunRecord) -> Points:
    found = densities(run)
    return [
        {"run": run.name, "layer": name, "value": value, "weights": weights[name]}
        for weights in [{layer.parameter: layer.num_weights for layer in run.plan.layers}]
        for name, value in found.items()
        if name in weights
    ]


def _histogram(run: RunRecord, found: StoredWeights) -> Points:
    return [
        {"run": run.name, "series": series, "from": low, "to": high, "count": number}
        for series, counts in (("kept", found.kept), ("pruned", found.pruned))
        for low, high, number in zip(found.edges, found.edges[1:], counts)
        if number
    ]


def _sensitivity(run: RunRecord) -> Points:
    levels = run.profile.get("levels", [])
    return [
        {"run": run.name, "layer": layer["parameter"], "level": level, "value": _finite(loss)}
        for layer in run.profile.get("layers", [])
        for level, loss in zip(levels, layer["losses"])
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
