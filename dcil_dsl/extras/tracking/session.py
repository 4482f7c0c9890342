"""`--track`: a display that also sends a run to a tracker.

In:   the name of a tracker, a run folder, its Plan, the display that shows the run.
Out:  a display; the tracker has the settings, the numbers of each epoch and, at the end, the files.
      tracking.json in the run folder: by which key a resumed run finds itself.
Not:  a tracker never ends a run: the first call that fails is reported, and there is no other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.diagnostics.optional import is_installed
from dcil_dsl.extras.tracking.trackers import TRACKERS, End, Tracker
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.events import numbers_of, settings_of
from dcil_dsl.training.files import read_text, write_text
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import COMMAND, RunFolder

KEYS = "tracking.json"
PAGE = "report.html"


def require(name: str) -> None:
    """InputError where the library of the tracker is missing."""
    if not is_installed(name):
        raise InputError(
            f"--track {name}: {name} is not installed", help=f"pip install 'dcil-dsl[{name}]'"
        )


@contextmanager
def tracked(
    name: str, folder: RunFolder, plan: Plan, display: Display, warn: Callable[[str], object]
) -> Iterator[Display]:
    """The display of a run that is sent to the tracker `name` until the block ends.

    warn: called once with a sentence, if the tracker fails.
    """
    sent = Sent(name, warn)
    sent.begin(folder, plan)
    how: End = "failed"
    try:
        yield TrackedDisplay(display, sent)
        how = "finished" if folder.report.is_file() else "interrupted"
    finally:
        sent.end(folder, how)


class Sent:
    """The calls of one tracker, of which the first that fails is the last."""

    def __init__(self, name: str, warn: Callable[[str], object]) -> None:
        self.name, self.warn = name, warn
        self.tracker: Tracker | None = None

    def begin(self, folder: RunFolder, plan: Plan) -> None:
        with self._reported():
            file = folder.path / KEYS
            keys: dict[str, str] = dict(json.loads(read_text(file))) if file.exists() else {}
            made = TRACKERS[self.name](folder.path.name, settings_of(plan), keys.get(self.name))
            write_text(file, json.dumps(keys | {self.name: made.key}) + "\n")
            self.tracker = made

    def log(self, line: Mapping[str, Any]) -> None:
        with self._reported():
            if self.tracker is not None:
                self.tracker.log(numbers_of(line), line["step"])

    def end(self, folder: RunFolder, how: End) -> None:
        with self._reported(), tempfile.TemporaryDirectory() as place:
            if self.tracker is not None:
                self.tracker.end([*_files(folder, Path(place), how)], how)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a library, a network or a server does
            self.tracker = None
            text = " ".join(str(error).split()) or type(error).__name__
            self.warn(f"--track {self.name} failed, and the run continues without it: {text}")


def _files(folder: RunFolder, place: Path, how: End) -> Iterator[Path]:
    """What a run leaves besides tensors; of a finished run the page of `dcil report` too."""
    texts = (folder.recipe, folder.resolved, folder.plan, folder.path / COMMAND)
    for file in (*texts, folder.metrics, folder.report):
        if file.is_file():
            yield file
    if how == "finished":
        from dcil_dsl.extras.report.verbs import read_runs, write_page

        write_page(read_runs([str(folder.path)]), place / PAGE)
        yield place / PAGE


class TrackedDisplay(Display):
    """The display inside, whose lines of epochs are sent too."""

    def __init__(self, inner: Display, sent: Sent) -> None:
        super().__init__()
        self.inner, self.sent = inner, sent

    def __enter__(self) -> Display:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)

    def begin(
        self, plan: Plan, step: int, num_steps: int, lines: Sequence[Mapping[str, Any]]
    ) -> None:
        self.inner.begin(plan, step, num_steps, lines)

    def step(self, step: int, loss: float) -> None:
        self.inner.step(step, loss)

    def rewound(self, text: str) -> None:
        self.inner.rewound(text)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def epoch(self, line: dict[str, Any]) -> None:
        self.inner.epoch(line)
        self.sent.log(line)
