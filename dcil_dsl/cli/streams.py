"""Standard output and error that never end a run: what cannot be written is lost.

In:   the streams that the program was started with: closed, full, without a reader, narrow.
Out:  sys.stdin, sys.stdout and sys.stderr to print to as usual; why something was lost.
Not:  whether a loss matters: to the verbs whose work is what they print, it does (`show`).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys

from dcil_dsl.diagnostics import InputError

ERRORS = "dcil-shown"  # how a character is written that the encoding does not have


class LossyFile(io.FileIO):
    """A descriptor to which every write succeeds. lost: the first error that there was."""

    lost: OSError | None = None

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:  # all of it: what is not buffered comes here without another try
                written = super().write(left)
                if written is None:  # not blocking, and full
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.lost = self.lost or error
        return size


def open_streams() -> None:
    """Put what can always be printed to in the place of this process's standard streams.

    A closed descriptor is opened on nothing first: else the next file, say a checkpoint, has its
    number, and is written to by whoever prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    codecs.register_error(ERRORS, _shown)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = _lossy(sys.stdout, 1), _lossy(sys.stderr, 2)


def show(text: str) -> None:
    """Print what a verb was called for. InputError where it could not be written.

    A reader that has seen enough, and a closed stream, are as the caller wants it.
    """
    print(text, end="" if text.endswith("\n") else "\n", flush=True)
    if (why := take_lost()) is not None:
        raise InputError(f"cannot write the output: {why}")


def take_lost() -> str | None:
    """Why output was lost that a reader still wanted, since this was last asked."""
    sys.stdout.flush()
    file = _file_of(sys.stdout)
    lost = getattr(file, "lost", None)
    if lost is None or lost.errno == errno.EPIPE:
        return None
    file.lost = None
    return lost.strerror


def _lossy(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    if stream is None:  # it was closed
        return open(os.devnull, "w")
    if not isinstance(_file_of(stream), io.FileIO):
        return stream  # another program's, which calls us
    stream.flush()
    file = LossyFile(number, "w", closefd=False)
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if is_buffered else file,
        encoding=stream.encoding,
        errors=ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _file_of(stream: io.TextIOWrapper) -> object:
    """What is below the buffer, if there is one."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes of a file's name as they are; another character as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
