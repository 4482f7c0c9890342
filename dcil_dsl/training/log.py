"""What a run says of its epochs: metrics.jsonl, TensorBoard's events, the display.

In:   the line of an epoch.
Out:  the line in each of them, on the first rank alone.
Not:  nothing is measured (result.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder, cannot_write


class Log:
    """Where the lines of epochs go; nowhere without a writer."""

    def __init__(self, run: RunFolder, display: Display, events: SummaryWriter | None):
        self.run, self.display, self.events = run, display, events

    def write(self, line: dict[str, Any]) -> None:
        """Add the line of an epoch. InputError where the disk refuses it."""
        if self.events is None:
            return
        self.run.append_metrics(line)
        try:
            write_events(self.events, line)
        except OSError as error:
            raise cannot_write(self.run.events, error) from None
        self.display.epoch(line)


@contextmanager
def open_log(run: RunFolder, display: Display, step: int, writes: bool) -> Iterator[Log]:
    """The log of a run that goes on at `step`. writes: whether this is the rank that writes it."""
    if not writes:
        yield Log(run, display, None)
        return
    try:
        events = SummaryWriter(str(run.events), purge_step=step)
    except OSError as error:
        raise cannot_write(run.events, error) from None
    try:
        yield Log(run, display, events)
    finally:
        with suppress(OSError):  # each line was flushed, or an error has said why not
            events.close()


def write_events(writer: SummaryWriter, line: Mapping[str, Any]) -> None:
    """The numbers of one line as TensorBoard scalars: "losses/...", "top1/sparse", "lr"."""
    for name, value in line.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                writer.add_scalar(f"{name}/{inner}", number, line["step"])
        elif isinstance(value, list):  # names, of which a curve can tell how many
            writer.add_scalar(name, len(value), line["step"])
        elif name not in ("step", "epoch"):
            writer.add_scalar(name, value, line["step"])
    writer.flush()
