"""Compile the kernels once for this CPU, and load them.

In:   kernels.c, the system's C compiler.
Out:  Library: the functions of the kernels; or the reason why there is none.
Not:  nothing of an exported folder is compiled or loaded.

The compiled file lies in the user's cache folder under a hash of source, flags, compiler and CPU.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from dcil_dsl.extras.cpu.structs import Attention, Op, RowStruct, Slices

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi")
Instructions = Literal["native", "avx2", "portable"]
Kernels = Literal["auto", "c", "generated", "torch"]
SECONDS = 300  # that the compiler may take


@dataclass(frozen=True)
class Library:
    """The compiled kernels.

    lanes    floats of one vector
    threads  whether it was compiled with OpenMP; else every kernel runs on one thread
    """

    functions: ctypes.CDLL
    lanes: int
    threads: bool


@functools.cache
def load_library(instructions: Instructions = "native") -> Library | str:
    """The kernels for this CPU, or one sentence that says why there are none.

    instructions  `avx2` and `portable` (SSE) hold the compiler back, for comparisons
    """
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        return "no C compiler is installed (set CC, or install gcc or clang)"
    problem = ""
    for threads in (True, False):
        flags = (*FLAGS, *_target(instructions), *(("-fopenmp",) if threads else ()))
        try:
            file = _compile(compiler, flags)
            functions = ctypes.CDLL(str(file))
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            problem = " ".join(str(detail).split())[:200]
            continue
        return _declared(functions)
    return f"{compiler} does not compile the kernels: {problem}"


def warn_without(reason: str) -> None:
    """Say once for each reason that torch computes everything."""
    warnings.warn(f"no sparse kernels: {reason}; torch runs every layer", stacklevel=3)


def _compilers() -> list[str]:
    return [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]


def _target(instructions: Instructions) -> tuple[str, ...]:
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return ("-mcpu=native",)
    level = {"native": "native", "avx2": "x86-64-v3", "portable": "x86-64-v2"}[instructions]
    return (f"-march={level}",)


def _compile(compiler: str, flags: tuple[str, ...]) -> Path:
    """The compiled file, from the cache if it has one."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    key = sha256(b"\0".join([SOURCE.read_bytes(), *map(str.encode, flags), version, _cpu()]))
    file = _cache() / f"kernels-{key.hexdigest()[:32]}.so"
    if file.exists():
        return file
    descriptor, draft = tempfile.mkstemp(suffix=".so", dir=file.parent)
    os.close(descriptor)
    try:
        subprocess.run(
            [compiler, *flags, "-o", draft, str(SOURCE), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        os.replace(draft, file)  # whole or not at all, also where two processes compile
    finally:
        Path(draft).unlink(missing_ok=True)
    return file


def _cpu() -> bytes:
    """What tells CPUs with other instructions apart."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor().encode()
    kinds = ("flags", "Features", "model name", "CPU part")
    lines = dict.fromkeys(line for line in text.splitlines() if line.startswith(kinds))
    return "\n".join(lines).encode()


@functools.cache
def _private() -> Path:
    return Path(tempfile.mkdtemp(prefix="dcil-"))


def _cache() -> Path:
    """The user's cache folder; one of this process where the user's cannot be written."""
    given = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(given) if given else Path.home() / ".cache") / "dcil" / "cpu"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
        if os.access(folder, os.W_OK) and state.st_uid == os.getuid() and not state.st_mode & 0o022:
            return folder
    except (OSError, RuntimeError, AttributeError):
        pass
    return _private()


def _declared(functions: ctypes.CDLL) -> Library:
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    functions.dcil_facts.argtypes, functions.dcil_facts.restype = [integer], integer
    functions.dcil_planes.argtypes = [pointer, integer, integer, integer]
    functions.dcil_rows.argtypes = [pointer, *[pointer] * 3, integer, pointer, integer]
    functions.dcil_slices.argtypes = [pointer, *[pointer] * 3, integer]
    functions.dcil_attention.argtypes = [pointer] * 7 + [ctypes.c_double, integer]
    for name in ("planes", "rows", "slices", "attention"):
        getattr(functions, f"dcil_{name}").restype = None
    for which, struct in ((1, Op), (2, RowStruct), (3, Slices), (5, Attention)):
        size = functions.dcil_facts(which)
        assert size == ctypes.sizeof(struct), f"{struct.__name__}: {size} bytes in C"
    return Library(functions, functions.dcil_facts(0), bool(functions.dcil_facts(4)))
