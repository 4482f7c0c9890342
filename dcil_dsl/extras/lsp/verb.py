"""The verb `dcil lsp`: the language server on standard input and output.

In:   nothing; an editor starts it.
Out:  the protocol on standard output until the editor ends it.
Not:  no server (server.py). InputError where the extra is not installed.
"""

from __future__ import annotations

import os
import sys

from dcil_dsl.cli.verb import verb
from dcil_dsl.diagnostics import InputError


@verb
def lsp() -> None:
    """Run the language server for recipes on standard input and output."""
    leave_working_folder()
    try:
        import pygls  # noqa: F401
    except ImportError:
        raise InputError(
            "the language server needs pygls, which is not installed",
            help="pip install 'dcil-dsl[lsp]'",
        ) from None
    from dcil_dsl.extras.lsp.server import make_server

    # The protocol has the streams for itself: what a library prints goes to standard error.
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    make_server().start_io(incoming, outgoing)


def leave_working_folder() -> None:
    """Import nothing from the folder that is open: it may be a stranger's.

    `python -m dcil_dsl lsp` puts the working folder at the front of the path, and packages that
    lie there could declare words.
    """
    here = os.path.realpath(os.getcwd())
    sys.path[:] = [one for one in sys.path if one and os.path.realpath(one) != here]
