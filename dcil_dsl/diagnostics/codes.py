"""All diagnostic codes, and the text that `dcil explain` prints for one.

The messages themselves are where the mistakes are found.
"""

from __future__ import annotations

from dcil_dsl.diagnostics.code import Code
from dcil_dsl.diagnostics.codes_model import MODEL
from dcil_dsl.diagnostics.codes_recipe import RECIPE
from dcil_dsl.diagnostics.codes_syntax import SYNTAX
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.diagnostics.suggest import did_you_mean

CODES: dict[str, Code] = {code.code: code for code in (*SYNTAX, *RECIPE, *MODEL)}


def explain(code: str) -> str:
    """What a code means, with a wrong and a right example; InputError for an unknown code."""
    name = code.strip().upper()
    if name not in CODES:
        help = did_you_mean(name, CODES) or (
            "codes look like E301 or W303; a layer is explained with its RECIPE and --model SPEC"
        )
        raise InputError(f"no diagnostic has the code {code}", help)
    entry = CODES[name]
    parts = [f"{entry.code}: {entry.title}", entry.meaning]
    if entry.wrong:
        parts.append("Wrong:\n\n" + _indented(entry.wrong))
    if entry.right:
        parts.append("Right:\n\n" + _indented(entry.right))
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
