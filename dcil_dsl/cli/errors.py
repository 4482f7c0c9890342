"""Errors as text on stderr and an exit status.

In:   diagnostics, notes, and the exception that a verb raised.
Out:  0 done; 1 the recipe is wrong or the result does not hold; 2 the command, the model or the
      data is wrong; 70 a bug of dcil, with the traceback; 130 interrupted.
Not:  no verb, and no torch: `dcil check` does not wait for it.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback
from collections.abc import Callable
from time import sleep

from dcil_dsl.cli.streams import open_streams, take_lost
from dcil_dsl.diagnostics import Diagnostic, InputError, RecipeError
from dcil_dsl.diagnostics.counting import count

SECONDS_FOR_THE_FIRST = 3  # to report, before the other processes of the machine end
DONE, WRONG, MISUSED, OURS, STOPPED = 0, 1, 2, 70, 130
NUMBERS = (  # environment variables that a launcher sets
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
)


def status_of(error: BaseException, concise: bool) -> int:
    """Report `error` on stderr; return the exit status of the process.

    Of several processes of one job, one reports an error that all of them met
    (training/distributed.py). Before the processes are connected, those of one machine give its
    first process the time to report: once it has ended, torchrun ends the others.
    """
    rank = getattr(error, "rank", None)
    if rank is None and int(os.environ.get("LOCAL_RANK", 0)) > 0:
        sleep(SECONDS_FOR_THE_FIRST)
    if getattr(error, "told_elsewhere", False):
        return _status(error)
    if rank:
        _say(f"rank {rank}:")
    _tell_end(error, concise)
    return _status(error)


def _status(error: BaseException) -> int:
    match error:
        case KeyboardInterrupt():
            return STOPPED
        case RecipeError():
            return WRONG
        case InputError():
            return MISUSED
        case PermissionError() if error.filename is not None:
            return MISUSED
    if _is_out_of_memory(error):
        return MISUSED
    return WRONG if _is_sparsity_error(error) else OURS


def _tell_end(error: BaseException, concise: bool) -> None:
    match error:
        case KeyboardInterrupt():
            _say("interrupted")
        case RecipeError():
            _tell_all(error.diagnostics, concise)
        case InputError():
            _say(f"error: {error.message}")
            if error.help and not concise:
                _say("\n".join(f"  {line}" for line in error.help.splitlines()))
        case PermissionError() if error.filename is not None:  # a file of the user's, whichever
            _say(f"error: {error.filename}: {error.strerror}")
        case _ if _is_sparsity_error(error):
            _say(f"error: {error}")
        case _ if _is_out_of_memory(error):
            _say(f"error: out of memory: {' '.join(str(error).split())[:200]}")
            _say("  a smaller `batch_size` or `image_size` in the recipe's `data` needs less")
        case _:
            traceback.print_exception(error, file=sys.stderr)
            _say(
                f"error: {type(error).__name__}: {error}\nthis is a bug in dcil_dsl; please "
                "report it with the text above and the recipe"
            )


def tell(diagnostic: Diagnostic, concise: bool) -> None:
    """Print one diagnostic on stderr, with its source line or, if `concise`, in one line."""
    from dcil_dsl.diagnostics.render import render, render_concise

    if concise:
        _say(render_concise(diagnostic))
    else:
        _say(render(diagnostic, color=sys.stderr.isatty()))


def note(text: str) -> None:
    """Print a fact on stderr that is not about a place in the recipe."""
    _say(text if text.startswith("warning: ") else f"note: {text}")


def run_program(program: Callable[[], None]) -> None:
    """Run a command line to its SystemExit, even if its output cannot be written.

    One process of several ends without shutting Python down: torch 2.14 keeps gloo's threads after
    the group is destroyed, and a thread that frees a tensor during the shutdown aborts a job that
    was done.
    """
    open_streams()
    if (why_not := _why_not()) is not None:
        _say(f"error: {why_not}")
        sys.exit(MISUSED)
    try:
        program()
    except SystemExit as ended:
        if (why := take_lost()) is not None:
            note(f"warning: cannot write the output: {why}")
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        atexit._run_exitfuncs()  # the handlers of the user's model and of libraries
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else DONE)


def _why_not() -> str | None:
    """Why this process can run nothing, or None."""
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries of torch would end the process with their own message
        return "the working directory no longer exists\n  start in another one"
    for name in NUMBERS:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdecimal()):
            return f"{name} is `{value}` in the environment: not a number\n  unset it"
    return None


def _tell_all(diagnostics: list[Diagnostic], concise: bool) -> None:
    from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS

    for index, diagnostic in enumerate(diagnostics[:MAX_ERRORS]):
        if index and not concise:
            _say("")
        tell(diagnostic, concise)
    if len(diagnostics) > MAX_ERRORS:
        _say(f"and {count(len(diagnostics) - MAX_ERRORS, 'more error')}")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine is out of memory.

    torch reports the latter as a plain RuntimeError. With still less memory a library cannot be
    loaded, or a process cannot be started.
    """
    told = ("can't allocate memory", "out of memory", "failed to map segment")
    is_told = isinstance(error, RuntimeError | ImportError) and any(w in str(error) for w in told)
    is_systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or is_told or is_systems


def _is_sparsity_error(error: BaseException) -> bool:
    # Looked up in the loaded modules: importing training would load torch, and an error of a
    # module that is not loaded cannot have been raised.
    loaded = sys.modules.get("dcil_dsl.training.sparsity")
    return loaded is not None and isinstance(error, loaded.SparsityError)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
