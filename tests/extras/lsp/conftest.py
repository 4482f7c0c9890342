"""The fixtures of a session, where the libraries of the extra are installed."""

from importlib.util import find_spec

if find_spec("pytest_lsp") is not None:
    from support.lsp_session import cache, editor, shared, start, table, text  # noqa: F401
