"""Show a run while it trains.

In:   the lines of metrics.jsonl as they are made, and the loss between them.
Out:  a live bar on a terminal's stderr; plain lines where there is no terminal; nothing when
      quiet.
Not:  nothing is measured here, and nothing here waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import PLAIN, fit
from dcil_dsl.words.metrics import METRICS, metric_text

SECONDS_BETWEEN_LINES = 60.0  # within an epoch, where there is no bar


@dataclass
class Display:
    """Shows a run. Use in a `with`; `begin`, then `step` and `epoch` as it proceeds."""

    mode: Literal["bar", "lines", "quiet"] = "quiet"
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _bar: Progress | None = None
    _plan: Plan | None = None
    _last: dict[str, Any] | None = None
    _shown_at: float = 0.0
    _went_back: bool = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, plan: Plan, step: int, num_steps: int, last: dict[str, Any] | None) -> None:
        """The run starts, or resumes, at `step` of `num_steps`; `last` is the latest line."""
        self._plan, self._last, self._shown_at = plan, last, time.monotonic()
        if self.mode == "bar":
            columns = [
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                # In a narrow terminal the bar gives way, not the number of the step.
                MofNCompleteColumn(table_column=Column(min_width=2 * len(str(num_steps)) + 1)),
                TimeRemainingColumn(compact=True),
            ]
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task(self._text(step, None), total=num_steps, completed=step)
            self._bar.start()
        elif self.mode == "lines" and step and not self._went_back:
            self._print(f"resumed at step {step:,} of {num_steps:,}")

    def step(self, step: int, loss: float) -> None:
        """`step` updates are done; `loss` is the latest batch's."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=step, description=self._text(step, loss)
            )
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
        if self.mode != "quiet" and self._plan is not None:
            self._print(line_text(line, self._plan))

    def _text(self, step: int, loss: float | None) -> str:
        plan = self._plan
        assert plan is not None, "begin() comes first"
        epoch = min(step // plan.steps_per_epoch + 1, plan.train.num_epochs)
        words = [f"epoch {epoch}/{plan.train.num_epochs}"]
        if loss is not None:
            words.append(f"loss {loss:.3f}")
        if self._last is not None:
            words += _main_values(self._last, ".1%")
            words.append(f"sparsity {self._last['sparsity_measured']:.1%}")
        return "  ".join(words)

    def _print(self, text: str) -> None:
        self._shown_at = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_display(quiet: bool = False, console: Console | None = None) -> Display:
    """A bar where stderr is a terminal, lines where it is not."""
    console = Console(stderr=True) if console is None else console
    if quiet:
        return Display("quiet", console)
    return Display("bar" if console.is_terminal else "lines", console)


def line_text(line: Mapping[str, Any], plan: Plan) -> str:
    """One line of metrics.jsonl for a person; losses that do not fit go on the next line."""
    paths = "".join(f"{text}  " for text in _main_values(line, ".2%"))
    text = (
        f"epoch {line['epoch']}/{plan.train.num_epochs}  step {line['step']:,}  {paths}"
        f"sparsity {line['sparsity_measured']:.2%}  flips {line['mask_flips']:,}  "
        f"{line['seconds']:.1f} s  {line['examples_per_second']:.0f}/s"
    )
    losses = "  ".join(
        f"{name.replace('cross_entropy', 'ce')} {value:.3f}"
        for name, value in line["losses"].items()
    )
    if len(text) + 2 + len(losses) <= PLAIN.width:
        return f"{text}  {losses}"
    return fit(f"{text}\n  {losses}", PLAIN.width)


def _main_values(line: Mapping[str, Any], form: str) -> list[str]:
    """The first metric of the run on each path; other metrics than accuracies by their name."""
    metric = next((name for name in METRICS if isinstance(line.get(name), Mapping)), None)
    if metric is None:
        return []
    name = "" if METRICS[metric].is_share else f"{metric} "
    return [
        f"{path} {name}{metric_text(metric, value, form)}" for path, value in line[metric].items()
    ]
