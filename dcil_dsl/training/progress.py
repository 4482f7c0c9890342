"""Show a run while it trains.

In:   the lines of metrics.jsonl as they are made, and the loss between them.
Out:  a live bar on a terminal's stderr, or in the cell of a notebook (notebook.py); plain lines
      where there is neither; nothing when quiet.
Not:  nothing is measured here, and nothing here waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import PLAIN
from dcil_dsl.training.epoch_rows import EpochRows, main_metric
from dcil_dsl.training.notebook import NotebookScreen
from dcil_dsl.words.metrics import METRICS, metric_text

SECONDS_BETWEEN_LINES = 60.0  # within an epoch, where there is no bar
SMALLEST_BAR, LARGEST_BAR = 8, 40
ETA_WIDTH = len("ETA 00:00:00")


class EtaColumn(TimeRemainingColumn):
    """The time that remains, with its label, in a width that never changes."""

    def render(self, task: Task) -> Text:
        return Text(f"ETA {super().render(task).plain}".ljust(ETA_WIDTH), style="cyan")


@dataclass
class Display:
    """Shows a run. Use in a `with`; `begin`, then `step` and `epoch` as it proceeds."""

    mode: Literal["bar", "lines", "notebook", "quiet"] = "quiet"
    console: Console = field(default_factory=lambda: Console(stderr=True))
    screen: NotebookScreen | None = None
    _bar: Progress | None = None
    _plan: Plan | None = None
    _rows: EpochRows | None = None
    _last: Mapping[str, Any] | None = None
    _shown_at: float = 0.0
    _went_back: bool = False
    _num_steps: int = 0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self.screen is not None:
            self.screen.end()

    def begin(
        self, plan: Plan, step: int, num_steps: int, lines: Sequence[Mapping[str, Any]]
    ) -> None:
        """The run starts, or resumes, at `step` of `num_steps`; `lines` are those of its past."""
        self._plan, self._last = plan, lines[-1] if lines else None
        self._shown_at, self._num_steps = time.monotonic(), num_steps
        self._rows = EpochRows(plan, self.console.width if self.mode == "bar" else PLAIN.width)
        self._rows.see(lines)
        if self.screen is not None:
            self.screen.begin(step)
        if self.mode == "bar":
            columns = [
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=self._bar_width()),
                TextColumn(f"{{task.completed:>{len(str(num_steps))}.0f}}/{num_steps}"),
                EtaColumn(),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task(self._text(step, None), total=num_steps, completed=step)
            self._bar.start()
        elif self.mode != "quiet" and step and not self._went_back:
            self._print(f"resumed at step {step:,} of {num_steps:,}")

    def step(self, step: int, loss: float) -> None:
        """`step` updates are done; `loss` is the latest batch's."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=step, description=self._text(step, loss)
            )
        elif self.screen is not None:
            self.screen.move(step, self._num_steps, self._text(step, loss))
        elif self.mode == "lines" and time.monotonic() - self._shown_at > SECONDS_BETWEEN_LINES:
            self._print(f"step {step:,}  {self._text(step, loss)}")

    def rewound(self, text: str) -> None:
        """The run goes back, for the reason `text`; it `begin`s again."""
        self.__exit__()
        self._went_back = True
        if self.mode != "quiet":
            self._print(text)

    def note(self, text: str) -> None:
        """Show an unexpected fact about the run."""
        if self.mode != "quiet":
            self._print(text)

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch is over."""
        self._last = line
        if self.mode == "quiet" or self._rows is None:
            return
        if not self._rows.columns:
            self._print(self._rows.header(line), "bold")
        text, best = self._rows.row(line)
        self._print(text, "green" if best else "")

    def _text(self, step: int, loss: float | None) -> str:
        """The words before the bar, as many as fit: the count and the time come first."""
        plan = self._plan
        assert plan is not None, "begin() comes first"
        epoch = min(step // plan.steps_per_epoch + 1, plan.train.num_epochs)
        words = [f"epoch {epoch}/{plan.train.num_epochs}"]
        if loss is not None:
            words.append(f"loss {loss:.3f}")
        if self._last is not None:
            words += _main_values(self._last, ".1%")
            words.append(f"sparsity {self._last['sparsity_measured']:.1%}")
        room = PLAIN.width if self.mode != "bar" else self._room() - self._bar_width()
        while len(words) > 1 and len("  ".join(words)) > room:
            words.pop()
        return "  ".join(words)

    def _room(self) -> int:
        """The columns that the count and the time leave, with a space between each of four."""
        count = 2 * len(str(self._num_steps)) + 1
        return self.console.width - count - ETA_WIDTH - 3

    def _bar_width(self) -> int:
        return max(SMALLEST_BAR, min(LARGEST_BAR, self._room() // 4))

    def _print(self, text: str, style: str = "") -> None:
        self._shown_at = time.monotonic()
        if self.screen is not None:
            self.screen.add(text, style)
            return
        self.console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def make_display(quiet: bool = False, console: Console | None = None) -> Display:
    """A bar where stderr is a terminal or in a notebook, lines where it is neither."""
    console = Console(stderr=True) if console is None else console
    if quiet:
        return Display("quiet", console)
    if console.is_jupyter:
        return Display("notebook", console, NotebookScreen())
    return Display("bar" if console.is_terminal else "lines", console)


def _main_values(line: Mapping[str, Any], form: str) -> list[str]:
    """The first metric of the run on each path; other metrics than accuracies by their name."""
    metric = main_metric(line)
    if not metric:
        return []
    name = "" if METRICS[metric].is_share else f"{metric} "
    return [
        f"{path} {name}{metric_text(metric, value, form)}" for path, value in line[metric].items()
    ]
