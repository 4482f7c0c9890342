"""What ends a command, as text on stderr and a status.

In:   diagnostics, notes, and whatever a verb raised.
Out:  0 done; 1 the recipe is wrong or the result does not hold; 2 the command, the model or the
      data is wrong; 70 a fault of ours, with the traceback; 130 interrupted.
Not:  no verb. torch is never imported here: `dcil check` has no time for it.
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

SECONDS_FOR_THE_FIRST = 3
DONE, WRONG, MISUSED, OURS, STOPPED = 0, 1, 2, 70, 130
NUMBERS = (  # of a launcher, in the environment
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
)


def status_of(error: BaseException, concise: bool) -> int:
    """Tell `error` on stderr; return the status it ends the process with.

    Of several processes of one job, one tells what all of them met (training/distributed.py).
    Before they know each other, the others of a machine leave its first the time to tell: once
    it has ended, torchrun ends them.
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
    """One diagnostic on stderr, drawn or in one line."""
    from dcil_dsl.diagnostics.render import render, render_concise

    if concise:
        _say(render_concise(diagnostic))
    else:
        _say(render(diagnostic, color=sys.stderr.isatty()))


def note(text: str) -> None:
    """Something worth knowing that is not about a place in the recipe."""
    _say(text if text.startswith("WARNING") else f"note: {text}")


def run_program(program: Callable[[], None]) -> None:
    """Run a command line to its SystemExit, whatever becomes of what it prints.

    One rank of several ends without taking Python down.
    torch 2.14 keeps gloo's threads although the group was destroyed. One that lets go of a tensor
    while the interpreter ends needs what is being taken away, and aborts a job that was done.
    """
    open_streams()
    if (why_not := _why_not()) is not None:
        _say(f"error: {why_not}")
        sys.exit(MISUSED)
    try:
        program()
    except SystemExit as ended:
        if (why := take_lost()) is not None:
            note(f"WARNING: cannot write the output: {why}")
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        atexit._run_exitfuncs()  # those of the user's model and of libraries
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code or DONE)


def _why_not() -> str | None:
    """Why nothing can be run in this process."""
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries of torch end the process, with words of their own
        return "the folder in which this was started is gone\n  start it in another one"
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
    """Of a GPU, or of the machine, of which torch tells in a RuntimeError without a class.

    Or so little that a library cannot be loaded, or no process started.
    """
    told = ("can't allocate memory", "out of memory", "failed to map segment")
    is_told = isinstance(error, RuntimeError | ImportError) and any(w in str(error) for w in told)
    is_systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or is_told or is_systems


def _is_sparsity_error(error: BaseException) -> bool:
    # Asked of the loaded modules: importing training would cost a second of torch, and an
    # error of a module that is not loaded cannot have been raised.
    metrics = sys.modules.get("dcil_dsl.training.metrics")
    return metrics is not None and isinstance(error, metrics.SparsityError)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
