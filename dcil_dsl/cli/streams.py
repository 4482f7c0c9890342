"""Standard output and error that never end a run: output that cannot be written is lost.

In:   the program's streams: closed, full, without a reader, or with a narrow encoding.
Out:  sys.stdin, sys.stdout and sys.stderr to print to as usual; why output was lost.
Not:  whether a loss matters. It does for verbs whose result is their output (`show`).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from dcil_dsl.diagnostics import InputError

ERRORS = "dcil-shown"  # the codec error handler for characters that the encoding lacks


class LossyFile(io.FileIO):
    """A file descriptor to which every write succeeds. lost: the first error."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:  # all of it: nobody retries an unbuffered write
                written = super().write(left)
                if written is None:  # a non-blocking stream that is full
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            self.lost = self.lost or error
        return size


def open_streams() -> None:
    """Replace the standard streams of this process by streams that accept any output.

    A closed descriptor is first opened on /dev/null. Otherwise the next file, such as a checkpoint,
    gets its number, and printing writes into that file.
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
    """Print the result of a verb. InputError where it could not be written.

    A reader that stops reading, and a closed stream, are the caller's wish and no error.
    """
    print(text, end="" if text.endswith("\n") else "\n", flush=True)
    require_shown()


def require_shown() -> None:
    """InputError where output of this process could not be written."""
    if (why := take_lost()) is not None:
        raise InputError(f"cannot write the output: {why}")


def take_lost() -> str | None:
    """Why output was lost since the last call, other than to a reader that stopped reading."""
    sys.stdout.flush()
    file = _file_of(sys.stdout)
    if not isinstance(file, LossyFile) or file.lost is None or file.lost.errno == errno.EPIPE:
        return None
    lost, file.lost = file.lost, None
    return lost.strerror


def _lossy(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # closed
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(_file_of(stream), io.FileIO):
        return stream  # of another program that calls dcil
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


def _file_of(stream: TextIO) -> object:
    """The raw file below the buffer, if there is a buffer."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes of a file's name unchanged; any other character as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
