"""Write prune.sublime-syntax, the form of Sublime Text and bat, from the TextMate grammar.

    python grammar/editors/sublime/draw.py

In:   ../vscode/syntaxes/prune.tmLanguage.json, whose rules are all single matches.
Out:  prune.sublime-syntax.
Not:  a capture has no rules of its own there: `*` and `?` in quotes have the string's colour.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "vscode" / "syntaxes" / "prune.tmLanguage.json"
TARGET = HERE / "prune.sublime-syntax"


def rules_of(patterns: list[dict[str, Any]], repository: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rule in its order, with what is included in place."""
    found = []
    for one in patterns:
        if "include" in one:
            held = repository[one["include"].removeprefix("#")]
            found += rules_of(held.get("patterns", [held]), repository)
        else:
            found.append(one)
    return found


def text_of(grammar: dict[str, Any]) -> str:
    lines = [
        "%YAML 1.2",
        "---",
        "# Written by draw.py from the TextMate grammar.",
        f"name: {grammar['name']}",
        f"file_extensions: {json.dumps(grammar['fileTypes'])}",
        f"scope: {grammar['scopeName']}",
        "contexts:",
        "  main:",
    ]
    for rule in rules_of(grammar["patterns"], grammar["repository"]):
        lines.append(f"    - match: {json.dumps(rule['match'])}")
        if "name" in rule:
            lines.append(f"      scope: {rule['name']}")
        named = {n: one["name"] for n, one in rule.get("captures", {}).items() if "name" in one}
        if named:
            lines.append("      captures:")
            lines += [f"        {number}: {name}" for number, name in named.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text_of(json.loads(SOURCE.read_text(encoding="utf-8"))), encoding="utf-8")
