"""A speed profile as text.

In:   a SpeedProfile.
Out:  a table of its times, the machine, and a rule to paste.
Not:  nothing is measured.
"""

from __future__ import annotations

from dcil_dsl.extras.latency.profile import SpeedProfile
from dcil_dsl.plan.text import table


def show_speed(profile: SpeedProfile) -> str:
    """The times at each sparsity, against the fastest dense engine."""
    fastest = profile.fastest_dense
    rows = [
        (name, "dense", f"{1000 * seconds:.4g}", f"{fastest / seconds:.2f}")
        for name, seconds in profile.dense.items()
    ]
    rows += [
        (profile.engine, f"{100 * level:g}%", f"{1000 * seconds:.4g}", f"{fastest / seconds:.2f}")
        for level, seconds in zip(profile.levels, profile.seconds, strict=True)
    ]
    lines = table(("engine", "zeros", "ms", "times as fast"), rows, "lrrr")
    most = fastest / profile.curve()[-1]
    lines += ["", f"{len(profile.layers)} layers pruned alike; {profile.where}"]
    if most > 1:
        lines.append(f'a target: speedup({0.9 * most:.2g}, profile="speed.json")')
    return "\n".join(lines) + "\n"
