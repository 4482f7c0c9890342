"""What removing dead channels did, as text and as data.

In:   Compacted, and what was Measured of it.
Out:  the table of layers that shrank, costs before and after, what stays and why; report.json.
Not:  nothing is measured here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.compact.compaction import Compacted
from dcil_dsl.extras.compact.measure import CALLS, Measured
from dcil_dsl.plan.wording import shorten, table

WIDTH = 100
MOST_REASONS = 8  # shown; the number of the rest is said, report.json has all


def report_of(result: Compacted, measured: Measured) -> dict:
    """Plain data for report.json."""
    return {
        "largest_difference": result.difference,
        "num_inputs": result.num_inputs,
        **measured.to_dict(),
        "class": type(result.model).__name__,
        "stays": [asdict(stay) for stay in result.stays],
    }


def show_compacted(result: Compacted, measured: Measured) -> str:
    """At most 100 columns."""
    rows = []
    for name, entry in result.shapes.tensors.items():
        small = tuple(result.tensors[name].shape)
        if entry.kept and len(small) > 1:
            sizes = [" x ".join(map(str, shape)) for shape in (entry.shape, small)]
            rows.append((shorten(name, 44), *sizes))
    lines = table(("weight", "before", "after"), rows, "lrr")
    if not rows:
        reason = (
            "for these reasons"
            if result.stays
            else (
                "no filter, input channel or head is all zero, and scattered zeros cannot leave; "
                "`--to safetensors` keeps them in place"
            )
        )
        lines = wrap(f"no layer shrank: {reason}", WIDTH)
    before, after = measured.before, measured.after
    # Two times of one network differ by chance alone, and would be read as a gain.
    differs = (before.parameters, before.macs) != (after.parameters, after.macs)
    rows = [
        _row("parameters", before.parameters, after.parameters, "{:,}"),
        _row("multiply-accumulates an example", before.macs, after.macs, "{:,}"),
    ]
    if differs:
        name = f"milliseconds for a batch of {measured.batch_size}"
        spreads = (f"{costs.fastest:.2f}..{costs.slowest:.2f}" for costs in (before, after))
        rows.append(_row(name, before.milliseconds, after.milliseconds, "{:.2f}"))
        rows.append(("  lowest..highest of the calls", *spreads, ""))
    lines += ["", *table(("", "before", "after", "of it"), rows, "lrrr")]
    if differs:
        lines.append(
            f"medians of {CALLS} alternating calls each, on {measured.device}, on this machine as "
            "it was:"
        )
        lines.append("other work on it counts in, and another machine will give other times")
    lines.append(
        f"largest difference on {count(result.num_inputs, 'input')}: {result.difference:.1e} of "
        "1 + the largest output"
    )
    return "\n".join([*lines, *_stays(result)]) + "\n"


def _row(name: str, before: float, after: float, form: str) -> tuple[str, ...]:
    share = f"{after / before:.1%}" if before else "-"
    return name, form.format(before), form.format(after), share


def _stays(result: Compacted) -> list[str]:
    reasons: Counter[str] = Counter()
    for stay in result.stays:
        reasons[stay.reason] += stay.count
    lines = []
    if reasons:
        total = count(sum(reasons.values()), "row of zeros stays", "rows of zeros stay")
        lines += ["", f"{total}:"]
    for reason, number in reasons.most_common(MOST_REASONS):
        lines += wrap(reason, WIDTH, initial_indent=f"{number:>7,}  ", subsequent_indent=" " * 9)
    if len(reasons) > MOST_REASONS:
        rest = count(len(reasons) - MOST_REASONS, "more reason")
        lines.append(f"         and {rest} in report.json")
    return lines
