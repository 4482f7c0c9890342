"""Show a run while it trains, and the table at its end.

In:   the lines of metrics.jsonl as they are made, and the loss between them.
Out:  a live bar on a terminal's stderr; plain lines where there is no terminal; nothing when
      quiet; scalars for TensorBoard; a table of the result.
Not:  nothing is measured here, and nothing here waits for the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import PLAIN
from dcil_dsl.training.epoch_rows import EpochRows, main_metric
from dcil_dsl.words.metrics import METRICS, metric_text

if TYPE_CHECKING:
    from dcil_dsl.training.result import Result

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

    mode: Literal["bar", "lines", "quiet"] = "quiet"
    console: Console = field(default_factory=lambda: Console(stderr=True))
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

    def begin(
        self, plan: Plan, step: int, num_steps: int, lines: Sequence[Mapping[str, Any]]
    ) -> None:
        """The run starts, or resumes, at `step` of `num_steps`; `lines` are those of its past."""
        self._plan, self._last = plan, lines[-1] if lines else None
        self._shown_at, self._num_steps = time.monotonic(), num_steps
        self._rows = EpochRows(plan, self.console.width if self.mode == "bar" else PLAIN.width)
        self._rows.see(lines)
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
        """Something about the run that one might not expect."""
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
        self.console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def make_display(quiet: bool = False, console: Console | None = None) -> Display:
    """A bar where stderr is a terminal, lines where it is not."""
    console = Console(stderr=True) if console is None else console
    if quiet:
        return Display("quiet", console)
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


def result_table(result: Result, plan: Plan, files: Sequence[Path] = ()) -> Table:
    """The end of a run as a table to print. `result` is the trainer's."""
    table = Table(title=plan.recipe.title or plan.recipe.name, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    for path, accuracy in result.accuracies.items():
        deployed = " (deployed)" if path == plan.deploy else ""
        numbers = "  ".join(f"{n} {metric_text(n, value, '.2%')}" for n, value in accuracy.items())
        table.add_row(f"{path} path{deployed}", numbers)
    if result.num_weights:
        for row in _sparsity_rows(result):
            table.add_row(*row)
        table.add_row("weights kept", f"{result.num_kept:,} of {result.num_weights:,}")
        for bound, names in (("floor", result.at_floor), ("ceiling", result.at_ceiling)):
            if names:
                table.add_row(f"layers at their {bound}", f"{len(names)}: {_few(names)}")
    table.add_row("steps", f"{result.step:,} of {plan.num_steps:,}")
    rate = f"{result.examples_per_second:.0f} examples/s"
    table.add_row("time", f"{_clock(result.seconds)}  ({rate})")
    waited = f"{result.data_seconds:.1f} s, {result.data_share:.1%} of the time of the steps"
    table.add_row("waiting for data", waited)
    for back in result.rewinds:
        fact = f"from step {back['step']:,} to {back['to']:,}: no finite {back['what']}"
        table.add_row("went back", fact)
    for text in result.patterns:
        table.add_row("2:4 patterns", text)
    table.add_row("training cost", f"{result.cost:.2f} x a dense run (passes, dense arithmetic)")
    if files:  # the folder once: a name that is cut in two can be neither read nor copied
        folder = os.path.commonpath([file.parent for file in files])
        table.add_row("folder", folder)
        for i, file in enumerate(files):
            table.add_row("files" if i == 0 else "", os.path.relpath(file, folder))
    return table


def _sparsity_rows(result: Result) -> Iterator[tuple[str, str]]:
    """Asked and measured; of several rules each alone, as their units do not add up."""
    measured = f"{result.sparsity_measured:.2%} of weights"
    if len(result.rules) == 1:
        yield "sparsity asked", f"{result.sparsity_asked:.2%} of {result.counts}"
        if result.counts != "weights":
            measured = f"{result.sparsity_counted:.2%} of {result.counts}, {measured}"
    else:
        for rule in result.rules:
            fact = f"{rule.asked:.2%} of {rule.counts} asked, {rule.pruned:.2%} measured"
            yield f"rule {Path(rule.rule).name}", fact
    yield "sparsity measured", measured


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
