"""Write the page: one HTML file that needs nothing else.

In:   RunRecords, the StoredWeights and the proof of each.
Out:  HTML. Tables and sentences stand in it as text; page.js draws the charts.
Not:  nothing is fetched: styles, script, libraries, data and pictures are inside.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from dcil_dsl.extras.report.differences import (
    MOST_LINES,
    Rows,
    layer_rows,
    plan_lines,
    recipe_lines,
    result_rows,
)
from dcil_dsl.extras.report.facts import chart_data, verdict
from dcil_dsl.extras.report.read import RunRecord
from dcil_dsl.extras.report.weights import StoredWeights
from dcil_dsl.plan.text import percent
from dcil_dsl.training.differences import text_differences

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
COMMENT = re.compile(r'("[^"]*")|#.*')
EXTENDS = re.compile(r"^[ \t]*extends\b", re.MULTILINE)
CURVES = {
    "metric": "Accuracy, held-out",
    "loss": "Loss, training",
    "sparsity": "Sparsity",
}
STABLE = "Weights that changed side in an epoch, and those of them that came back"


def make_page(
    runs: Sequence[RunRecord], weights: Sequence[StoredWeights], proofs: Sequence[str]
) -> str:
    """The whole page. proofs: a sentence for each run on whether its file was verified."""
    data = chart_data(runs, weights)
    title = runs[0].plan.recipe.title or runs[0].plan.recipe.name
    heading = title if len(runs) == 1 else f"{len(runs)} runs"
    body = [f"<h1>{escape(heading)}</h1>"]
    if len(runs) > 1:
        body += _differences(runs)
    else:
        body += _verdict(runs[0], proofs[0])
    body += _curves(data)
    body += _layer_chart(data)
    body += _stability(data)
    body += _histogram(data, weights)
    body += _sensitivity(data)
    for run, found, proof in zip(runs, weights, proofs, strict=True):
        details = [
            *_layers(run, found),
            *_bitmaps(found),
            *_bench(run),
            *_recipe(run),
            *_about(run),
        ]
        if len(runs) > 1:
            details = [
                f"<details><summary>{escape(run.name)}</summary>",
                *_verdict(run, proof),
                *details,
                "</details>",
            ]
        body += details
    return _document(heading, body, data)


def _document(title: str, body: Iterable[str], data: dict[str, Any]) -> str:
    libraries = "\n".join(f"<script>{_own(name)}</script>" for name in LIBRARIES)
    stored = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
            f"<title>{escape(title)} - dcil report</title>",
            f"<style>{_own('page.css')}</style></head><body>",
            *body,
            f'<script type="application/json" id="data">{stored}</script>',
            libraries,
            f"<script>{_own('page.js')}</script>",
            "</body></html>\n",
        ]
    )


# -- the sections ----------------------------------------------------------------------------------


def _differences(runs: Sequence[RunRecord]) -> list[str]:
    header = ("", *(run.name for run in runs))
    parts = ["<h2>Results</h2>", _table(header, result_rows(runs), "results")]
    if rows := layer_rows(runs):
        parts += [
            "<h3>Layers that differ most: weights that are not zero</h3>",
            _table(("layer", *header[1:]), rows),
        ]
    parts.append("<h2>What differs</h2>")
    for other in runs[1:]:
        pair = f"{escape(runs[0].name)} and {escape(other.name)}"
        lines = recipe_lines(runs[0].resolved, other.resolved)
        plans = plan_lines(runs[0], other)
        parts.append(f"<h3>Recipes: {pair}</h3>")
        parts.append(_diff(lines) if lines else "<p>The resolved recipes do not differ.</p>")
        shown = [*plans[:MOST_LINES]]
        if len(plans) > MOST_LINES:
            shown.append(f"and {len(plans) - MOST_LINES} more")
        parts.append(f"<h3>Plans: {pair}</h3>")
        parts.append(_pre("\n".join(shown)) if shown else "<p>The plans do not differ.</p>")
    return parts


def _verdict(run: RunRecord, proof: str) -> list[str]:
    parts = [f'<p class="verdict">{escape(verdict(run, proof))}</p>']
    for claim in run.report.get("expect", []):
        words = {True: "holds", False: "does not hold", None: "was not judged"}
        text = f"The recipe expects {claim['text']}: {words[claim['holds']]}."
        parts.append(f"<p>{escape(text)}</p>")
    if run.missing:
        parts.append(_note(f"Not in {run.name}: {', '.join(run.missing)}."))
    return parts


def _curves(data: dict[str, Any]) -> list[str]:
    keys = {"metric": "metrics", "loss": "losses", "sparsity": "sparsity"}
    drawn = [name for name in CURVES if data[keys[name]]]
    if not drawn:
        return ["<h2>Training</h2>", _note("No epoch has finished: there are no curves.")]
    titles = CURVES | {"metric": f"Held-out {data['metric']}"}
    choice = (
        "<fieldset>against "
        '<label><input type="radio" name="axis" value="step" checked> steps</label>'
        '<label><input type="radio" name="axis" value="cost"> cost</label></fieldset>'
    )
    charts = [_chart(name, titles[name]) for name in drawn]
    if data["flips"]:
        charts.append(_chart("flips", STABLE))
    return ["<h2>Training</h2>", choice, '<div class="charts">', *charts, "</div>"]


def _layer_chart(data: dict[str, Any]) -> list[str]:
    if not data["layers"]:
        return ["<h2>Layers</h2>", _note("report.json, which counts the layers, is missing.")]
    return ["<h2>Layers</h2>", _chart("layers", "Density of each layer")]


def _stability(data: dict[str, Any]) -> list[str]:
    parts = ["<h2>Stability of the masks</h2>"]
    rows: Rows = []
    for run in data["runs"]:
        found = [point for point in data["flips"] if point["run"] == run]
        for quarter in range(4):
            totals = []
            for series in ("flipped", "revived"):
                points = [point for point in found if point["series"] == series]
                last = max((point["step"] for point in points), default=0)
                inside = [
                    p["count"] for p in points if 4 * (p["step"] - 1) // max(1, last) == quarter
                ]
                totals.append(f"{sum(inside):,}" if points else "-")
            if found:
                rows.append((run, f"{quarter + 1} of 4", *totals))
    if not rows:
        return [*parts, _note("metrics.jsonl counts no flips.")]
    parts.append(_table(("run", "quarter", "flipped", "revived"), rows))
    if not any(point["series"] == "revived" for point in data["flips"]):
        parts.append(_note("The run was made by a version that did not count revived weights."))
    parts.append(
        _note(
            "Flipped: the mask of the weight changed between the ends of two epochs. Revived: "
            "flipped from pruned to kept."
        )
    )
    return parts


def _histogram(data: dict[str, Any], weights: Sequence[StoredWeights]) -> list[str]:
    parts = ["<h2>Sizes of the weights</h2>"]
    if data["histogram"]:
        parts.append(_chart("histogram", "Kept and pruned weights of all pruned layers"))
        parts.append(_note("Weights beyond 4 mean sizes count in the outermost bars."))
    return parts + [_note(text) for text in dict.fromkeys(n for w in weights for n in w.notes)]


def _sensitivity(data: dict[str, Any]) -> list[str]:
    parts = ["<h2>Sensitivity</h2>"]
    if data["sensitivity"]:
        return [*parts, _chart("sensitivity", "Loss when one layer alone is pruned")]
    how = "`dcil sensitivity RUN --json RUN/sensitivity.json` measures it"
    return [*parts, _note(f"Not measured; {how}.")]


def _layers(run: RunRecord, found: StoredWeights) -> list[str]:
    zeros = {layer.parameter: layer for layer in found.layers}
    counts = {
        layer["parameter"]: layer for layer in run.report.get("weights", {}).get("layers", [])
    }
    bounds = dict.fromkeys(run.result.get("at_floor", []), "floor")
    bounds |= dict.fromkeys(run.result.get("at_ceiling", []), "ceiling")
    rows: Rows = []
    for layer in run.plan.layers:
        counted, zero = counts.get(layer.parameter), zeros.get(layer.parameter)
        rows.append(
            (
                layer.parameter,
                (layer.rule or "-").rpartition("/")[2] if layer.group is not None else "not pruned",
                f"{layer.num_weights:,}",
                "-" if counted is None else f"{counted['num_nonzero']:,}",
                "-"
                if counted is None
                else percent(round(1 - counted["num_nonzero"] / max(1, layer.num_weights), 4)),
                "-" if layer.macs is None else f"{2 * layer.macs:,}",
                bounds.get(layer.parameter, "-"),
                "-" if zero is None else f"{zero.empty_rows} of {zero.rows}",
                "-" if zero is None else f"{zero.empty_columns} of {zero.inputs}",
            )
        )
    header = (
        *("layer", "rule", "weights", "not zero", "sparsity", "FLOPs", "bound that binds"),
        *("empty outputs", "empty inputs"),
    )
    return ["<h3>Layer by layer</h3>", _table(header, rows)]


def _bitmaps(found: StoredWeights) -> list[str]:
    if not found.layers:
        return []
    header = ("layer", "as a matrix", "empty 16x16 tiles", "groups of four that fit 2:4")
    rows: Rows = [
        (
            layer.parameter,
            f"{layer.rows} x {layer.columns}",
            percent(round(layer.empty_tiles, 4)),
            percent(round(layer.fits_2_4, 4)),
        )
        for layer in found.layers
    ]
    pictures = [
        f'<figure><img alt="where {escape(layer.parameter)} is not zero" '
        f'src="data:image/png;base64,{layer.bitmap}">'
        f"<figcaption>{escape(layer.parameter)}</figcaption></figure>"
        for layer in found.layers
        if layer.bitmap
    ]
    return [
        "<h3>Where the zeros lie</h3>",
        _note("A row for each output, a column for each of its weights; the darker, the denser."),
        f'<div class="bitmaps">{"".join(pictures)}</div>',
        _table(header, rows),
    ]


def _bench(run: RunRecord) -> list[str]:
    parts = ["<h3>Size and speed</h3>"]
    exported = run.path / "sparse.safetensors"
    if exported.is_file():
        parts.append(f"<p>sparse.safetensors: {exported.stat().st_size / 1e6:,.2f} MB.</p>")
    times = run.bench.get("times", [])
    rows: Rows = [
        (
            str(one.get("engine", "-")),
            str(one.get("batch", "-")),
            str(one.get("threads", "-")),
            f"{1e3 * one['median']:.3f} ms" if "median" in one else str(one.get("problem", "-")),
        )
        for one in times
    ]
    if rows:
        return [*parts, _table(("engine", "batch", "threads", "median"), rows)]
    return [*parts, _note("Speed was not measured: bench.json is missing.")]


def _recipe(run: RunRecord) -> list[str]:
    parts = ["<h3>Recipe</h3>"]
    lines: list[str] = []
    if run.given:
        parts += ["<p>As given:</p>", _pre(run.given)]
    if run.given and run.resolved:
        lines = text_differences(_without_comments(run.given), _without_comments(run.resolved))
        if lines:
            parts += ["<p>From given to resolved, but for comments and spaces:</p>", _diff(lines)]
        else:
            parts.append("<p>Resolved, it differs in comments and spaces alone.</p>")
    if run.resolved and (lines or not run.given):
        parts += ["<p>Resolved, after extends, let and --set:</p>", _pre(run.resolved)]
    if run.parent:
        lines = recipe_lines(run.parent, run.resolved)
        parts += ["<p>What differs from the recipe that it extends:</p>"]
        parts.append(_diff(lines) if lines else "<p>Nothing differs.</p>")
    elif EXTENDS.search(run.given):
        parts.append(_note("The recipe that it extends is not in the run folder."))
    return parts


def _without_comments(text: str) -> str:
    """The lines without comments, blanks alike. A `#` in quotes is not a comment."""
    lines = (COMMENT.sub(lambda found: found[1] or "", line) for line in text.splitlines())
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def _about(run: RunRecord) -> list[str]:
    report, plan = run.report, run.plan
    device = report.get("device", {})
    facts: Rows = [
        ("recipe", f"{plan.recipe.name}, sha256 {plan.recipe.sha256}"),
        ("overrides", " ".join(f"{k}={v}" for k, v in plan.recipe.overrides.items()) or "none"),
        ("model", plan.model.name or "-"),
        ("data", plan.data.name or "-"),
        ("seed", str(plan.train.seed)),
        ("versions", ", ".join(f"{k} {v}" for k, v in report.get("versions", {}).items()) or "-"),
        ("device", " ".join(str(device[k]) for k in ("type", "name") if k in device) or "-"),
        ("started with", json.dumps(run.command) if run.command else "-"),
        ("command", command_of_run(run)),
    ]
    return ["<h3>About the run</h3>", _table(None, facts, "facts")]


def command_of_run(run: RunRecord) -> str:
    """A command that repeats the run, from its folder."""
    plan = run.plan
    words = ["dcil", "compile", str(run.path / "resolved.prune")]
    words += ["--model", plan.model.name or "MODEL", "--train", plan.data.name or "DATA"]
    words += ["--seed", str(plan.train.seed)]
    if run.command.get("weights"):
        words += ["--weights", str(run.command["weights"])]
    return shlex.join(words)


# -- pieces ----------------------------------------------------------------------------------------


def _chart(name: str, title: str) -> str:
    head = f'<figure data-chart="{name}"><figcaption>{escape(title)}</figcaption>'
    return f'{head}<div class="chart"></div></figure>'


def _table(header: Sequence[str] | None, rows: Rows, kind: str = "") -> str:
    head = "" if header is None else _row("th", header)
    body = "".join(_row("td", row) for row in rows)
    return f'<div class="scroll"><table class="{kind}">{head}{body}</table></div>'


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _diff(lines: Sequence[str]) -> str:
    kinds = {"+": "added", "-": "gone", "~": "changed"}
    shown = (f'<span class="{kinds.get(x[:1], "")}">{escape(x)}</span>' for x in lines)
    return "<pre>" + "\n".join(shown) + "</pre>"


def _pre(text: str) -> str:
    return f"<pre>{escape(text.rstrip())}</pre>"


def _note(text: str) -> str:
    return f'<p class="faint">{escape(text)}</p>'


def _own(name: str) -> str:
    return files("dcil_dsl.extras.report").joinpath(name).read_text(encoding="utf-8")
