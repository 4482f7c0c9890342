"""Memory for machine code: written first, executable afterwards, never both.

In:   routines as bytes, made by this process from checked data (code.py).
Out:  Executable: their addresses, for as long as it lives.
Not:  no code comes from a file.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
import weakref
from collections.abc import Sequence

ALIGNMENT = 64
_PRIVATE_ANONYMOUS = 0x22  # on Linux
_FAILED = ctypes.c_void_p(-1).value
_ADVICE = 14  # MADV_HUGEPAGE
HUGE = 2**21  # bytes of a huge page
LARGE = 2**20  # bytes of code from which on huge pages save more time than they waste memory


def can_execute() -> bool:
    """Whether the addresses and calls of this system are known here."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    size, integer, pointer = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    library.mmap.restype = pointer
    library.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_long]
    library.mprotect.argtypes = [pointer, size, integer]
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, integer]
    return library


class Executable:
    """Routines that can be called. OSError where the system forbids it."""

    def __init__(self, routines: Sequence[bytes]):
        library = _libc()
        starts, total = [], 0
        for code in routines:
            starts.append(total)
            total += -(-len(code) // ALIGNMENT) * ALIGNMENT
        unit = HUGE if total >= LARGE else mmap.PAGESIZE
        size = -(-max(total, 1) // unit) * unit + unit - mmap.PAGESIZE
        place = library.mmap(
            None, size, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE_ANONYMOUS, -1, 0
        )
        if place in (None, _FAILED):
            raise OSError(ctypes.get_errno(), "no memory for generated code")
        self._release = weakref.finalize(self, library.munmap, place, size)
        if unit == HUGE:
            library.madvise(place, size, _ADVICE)  # as the system likes
        place = -(-place // unit) * unit
        for start, code in zip(starts, routines):
            ctypes.memmove(place + start, code, len(code))
        if library.mprotect(
            place, -(-max(total, 1) // unit) * unit, mmap.PROT_READ | mmap.PROT_EXEC
        ):
            self._release()
            raise OSError(ctypes.get_errno(), "the system forbids generated code")
        self.size = total
        self.addresses = [place + start for start in starts]
        self.end = place + total
