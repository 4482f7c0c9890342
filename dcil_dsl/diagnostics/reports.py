"""Diagnostics for other programs: JSON, SARIF 2.1.0, and the commands of GitHub's workflows.

In:   diagnostics; the tables of codes.
Out:  text. Lines and columns count from 1, a column in characters; an end is exclusive.
Not:  no text for people (render.py).

A diagnostic whose help suggests a replacement has it as a fix (suggest.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcil_dsl.diagnostics.codes import CODES
from dcil_dsl.diagnostics.diagnostic import Diagnostic
from dcil_dsl.diagnostics.source import Span
from dcil_dsl.diagnostics.suggest import replacements

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True)
class FileReport:
    """One file. failure: why it could not be checked, where that is not a diagnostic."""

    name: str
    diagnostics: Sequence[Diagnostic]
    failure: str | None = None

    @property
    def is_sound(self) -> bool:
        return self.failure is None and not any(one.is_error for one in self.diagnostics)


def as_json(files: Sequence[FileReport]) -> str:
    """{"files": [{"path", "sound", "failure", "diagnostics": [...]}]}."""
    found = [
        {
            "path": file.name,
            "sound": file.is_sound,
            "failure": file.failure,
            "diagnostics": [diagnostic_json(one) for one in file.diagnostics],
        }
        for file in files
    ]
    return json.dumps({"files": found}, indent=2)


def diagnostic_json(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "code": diagnostic.code,
        "severity": "error" if diagnostic.is_error else "warning",
        "message": diagnostic.message,
        "label": diagnostic.label or None,
        "help": diagnostic.help,
        "place": None if diagnostic.span is None else _place(diagnostic.span),
        "related": [{"label": o.text or None, "place": _place(o.span)} for o in diagnostic.others],
        "fixes": [{"place": _place(at), "text": text} for at, text in replacements(diagnostic)],
    }


def _place(span: Span) -> dict[str, Any]:
    return {
        "path": span.source.name,
        "start": {"line": span.line, "column": span.column},
        "end": {"line": span.end_line, "column": span.end_column},
    }


# -- SARIF -------------------------------------------------------------------------------------


def as_sarif(files: Sequence[FileReport], version: str) -> str:
    """One run of the tool `dcil`; a rule for each code that occurs."""
    found = [one for file in files for one in file.diagnostics]
    rules = sorted({one.code for one in found})
    run = {
        "tool": {
            "driver": {
                "name": "dcil",
                "version": version,
                "rules": [_rule(code) for code in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, file.name, rules) for file in files for one in file.diagnostics],
        "invocations": [
            {
                "executionSuccessful": all(file.failure is None for file in files),
                "toolExecutionNotifications": [
                    {
                        "level": "error",
                        "message": {"text": file.failure},
                        "locations": [{"physicalLocation": {"artifactLocation": _uri(file.name)}}],
                    }
                    for file in files
                    if file.failure is not None
                ],
            }
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(code: str) -> dict[str, Any]:
    known = CODES.get(code)
    if known is None:
        return {"id": code}
    return {
        "id": code,
        "shortDescription": {"text": known.title},
        "fullDescription": {"text": known.meaning},
        "defaultConfiguration": {"level": "error" if code.startswith("E") else "warning"},
    }


def _result(diagnostic: Diagnostic, name: str, rules: list[str]) -> dict[str, Any]:
    text = diagnostic.message + (f"; {diagnostic.help}" if diagnostic.help else "")
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rules.index(diagnostic.code),
        "level": "error" if diagnostic.is_error else "warning",
        "message": {"text": text},
        "locations": [_location(diagnostic.span, name)],
    }
    if diagnostic.others:
        result["relatedLocations"] = [
            {"id": number, **_location(o.span, name), "message": {"text": o.text}}
            for number, o in enumerate(diagnostic.others, 1)
        ]
    fixes = [_fix(span, text) for span, text in replacements(diagnostic)]
    return {**result, "fixes": fixes} if fixes else result


def _fix(span: Span, text: str) -> dict[str, Any]:
    change = {"deletedRegion": _region(span), "insertedContent": {"text": text}}
    artifact = {"artifactLocation": _uri(span.source.name), "replacements": [change]}
    return {"artifactChanges": [artifact]}


def _location(span: Span | None, name: str) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": _uri(span.source.name if span else name)}
    if span is not None:
        place["region"] = _region(span)
    return {"physicalLocation": place}


def _region(span: Span) -> dict[str, int]:
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }


def _uri(name: str) -> dict[str, str]:
    from urllib.parse import quote

    return {"uri": quote(name.replace("\\", "/"), safe="/:")}


# -- GitHub ------------------------------------------------------------------------------------


def as_github(files: Sequence[FileReport]) -> str:
    """A workflow command a line: `::error file=a.prune,line=3,col=5,title=E301::message`."""
    lines = []
    for file in files:
        if file.failure is not None:
            lines.append(f"::error file={_property(file.name)}::{_data(file.failure)}")
        for one in file.diagnostics:
            level = "error" if one.is_error else "warning"
            text = one.message + (f"\n{one.help}" if one.help else "")
            where = {"file": file.name, "title": f"dcil {one.code}"}
            if one.span is not None:
                span = one.span
                where |= {"file": span.source.name, "line": str(span.line)}
                where |= {"col": str(span.column), "endLine": str(span.end_line)}
                where |= {"endColumn": str(span.end_column)}
            given = ",".join(f"{key}={_property(value)}" for key, value in where.items())
            lines.append(f"::{level} {given}::{_data(text)}")
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
