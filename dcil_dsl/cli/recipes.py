"""The verb `dcil recipes`.

In:   nothing.
Out:  a line for each recipe that comes with the program, and what was measured of it.
Not:  nothing is computed.
"""

from __future__ import annotations

from textwrap import wrap

from dcil_dsl.cli.errors import DONE
from dcil_dsl.cli.streams import show
from dcil_dsl.cli.verb import verb
from dcil_dsl.lang.shipped import shipped

WIDTH = 100


@verb
def recipes() -> int:
    """List the recipes that come with dcil, with what was measured of them."""
    found = shipped()
    widest = max(len(one.name) for one in found)
    lines: list[str] = []
    within = ""
    for one in found:
        folder = one.name.rpartition("/")[0]
        if folder != within:
            lines += ["", f"{folder}/", *_indented(one.of_folder)]
        within = folder
        lines += [f"{one.name:<{widest}}  {one.title}".rstrip(), *_indented(one.evidence)]
    show("\n".join(lines))
    return DONE


def _indented(evidence: str) -> list[str]:
    return [f"    {line}" for line in wrap(evidence, WIDTH - 4)]
