"""The results of `dcil check`: text for people, JSON, SARIF or GitHub's commands for programs.

In:   Checked values (jobs/check_files.py), one at a time.
Out:  text on stdout, diagnostics on stderr, an exit status; a report on stdout.
Not:  no checking.
"""

from __future__ import annotations

from collections.abc import Iterable

from dcil_dsl import __version__
from dcil_dsl.cli.errors import DONE, MISUSED, WRONG, note, status_of, tell
from dcil_dsl.cli.streams import require_shown, show
from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.reports import FileReport, as_github, as_json, as_sarif
from dcil_dsl.jobs.check_files import Checked

OUTPUTS = ("text", "json", "sarif", "github")


def show_checked(results: Iterable[Checked], model: str | None, concise: bool) -> int:
    """A line for each sound file, the diagnostics of every file; the greatest status of all."""
    status = DONE
    for one in results:
        for text in one.notes:
            note(text)
        errors = [d for d in one.diagnostics if d.is_error]
        for warning in (d for d in one.diagnostics if not d.is_error):
            tell(warning, concise)
        if errors:
            status = max(status, status_of(RecipeError(errors), concise))
        elif one.failed is not None:
            status = max(status, status_of(one.failed, concise))
        else:
            print(f"{one.file.name}: sound{_for_model(one, model)}")
    if status == DONE:
        require_shown()
    return status


def _for_model(one: Checked, model: str | None) -> str:
    if one.pruned is None:
        return ""
    pruned, layers = one.pruned
    return f" for {model}, prunes {pruned} of {count(layers, 'layer')}"


def write_reports(results: Iterable[Checked], output: str) -> int:
    """One report on all files, which another program reads."""
    found = list(results)
    files = [FileReport(one.file.name, one.diagnostics, _failure(one)) for one in found]
    if output == "json":
        show(as_json(files))
    elif output == "sarif":
        show(as_sarif(files, __version__))
    elif text := as_github(files):
        show(text)
    if any(one.failed is not None for one in found):
        return MISUSED
    return DONE if all(one.is_sound for one in found) else WRONG


def _failure(one: Checked) -> str | None:
    if one.failed is None:
        return None
    return one.failed.message + (f"; {one.failed.help}" if one.failed.help else "")
