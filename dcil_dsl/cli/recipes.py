"""The verb `dcil recipes`.

In:   nothing.
Out:  a line for each recipe that comes with the program, and what was measured of it.
Not:  nothing is computed.
"""

from __future__ import annotations

from textwrap import wrap

from dcil_dsl.cli.errors import DONE
from dcil_dsl.cli.verb import verb
from dcil_dsl.lang.shipped import shipped

WIDTH = 100


@verb
def recipes() -> int:
    """List the recipes that come with dcil, with what was measured of them."""
    found = shipped()
    widest = max(len(one.name) for one in found)
    within = ""
    for one in found:
        folder = one.name.rpartition("/")[0]
        if folder != within:
            print(f"\n{folder}/")
            _tell(one.of_folder)
        within = folder
        print(f"{one.name:<{widest}}  {one.title}".rstrip())
        _tell(one.evidence)
    return DONE


def _tell(evidence: str) -> None:
    for line in wrap(evidence, WIDTH - 4):
        print(f"    {line}")
