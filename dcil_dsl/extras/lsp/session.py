"""The texts that are open in the editor: one analysis of each version, the newest one.

In:   texts and their changes, the settings.
Out:  Analysis values; a call of `publish` with those that are complete.
Not:  no feature of the protocol (server.py).

A change cancels the analysis in flight, which ends at its next stage, and starts another one
after DEBOUNCE seconds. Analyses run in a thread; tables of layers are made by a child process,
after which the texts that want one are analysed again.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dcil_dsl.extras.lsp.analysis import Analysis, Cancelled, analyse
from dcil_dsl.extras.lsp.models import Refused, ServerSettings, Tables, Wanted, wanted_model
from dcil_dsl.extras.lsp.table import LayerTable, TableError
from dcil_dsl.lang import ast
from dcil_dsl.lang.link import read_saved

DEBOUNCE = 0.15  # seconds without a change before the text is analysed
GC_THRESHOLD = 100_000  # objects: a tree of 2,000 rules would start the collector a hundred times


def path_of(uri: str) -> Path | None:
    """The file of a URI; None for a text that is not saved."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.path else None


def uri_of(path: Path) -> str:
    return path.absolute().as_uri()


@dataclass
class Text:
    """One open text. analysis: of the newest version that was analysed; parents: the files that it
    read."""

    uri: str
    text: str
    version: int | None
    analysis: Analysis | None = None
    parents: set[Path | None] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None

    @property
    def path(self) -> Path | None:
        return path_of(self.uri)

    @cached_property
    def place(self) -> Path | None:
        """The file without links, by which two names of it are one."""
        return None if self.path is None else self.path.resolve()

    @property
    def is_current(self) -> bool:
        return self.analysis is not None and self.analysis.source.text == self.text


class EditorSession:
    """All open texts. publish(analysis, uri) is called in the loop of the server."""

    def __init__(self, publish: Callable[[Text], None], say: Callable[[str], None]):
        self.publish, self.say = publish, say
        self.texts: dict[str, Text] = {}
        self.settings = ServerSettings()
        self.root: Path | None = None
        self.tables = Tables()
        self.said: set[str] = set()
        self.wanting: set[asyncio.Task[None]] = set()
        gc.set_threshold(GC_THRESHOLD, 50, 100)

    # -- texts -----------------------------------------------------------------------------

    def open(self, uri: str, text: str, version: int | None) -> None:
        """A text, or another version of it."""
        known = self.texts.get(uri)
        if known is None:
            known = self.texts[uri] = Text(uri, text, version)
            wait = 0.0
        else:
            known.text, known.version = text, version
            wait = DEBOUNCE
        self.start(known, wait)
        self._start_children(known)

    def _start_children(self, changed: Text) -> None:
        """Analyse the texts that extend this one again."""
        for text in self.texts.values():
            if text is not changed and changed.place in text.parents:
                text.analysis = None
                self.start(text, DEBOUNCE)

    def close(self, uri: str) -> None:
        known = self.texts.pop(uri, None)
        if known is not None:
            known.stopped.set()
            self._start_children(known)  # what is not saved is gone

    def start(self, text: Text, wait: float) -> None:
        """Analyse the text after `wait` seconds in place of the analysis in flight."""
        text.stopped.set()
        text.stopped = threading.Event()
        text.task = asyncio.ensure_future(self._run(text, text.stopped, wait))

    def restart(self) -> None:
        """Analyse all texts again: the settings, a parent or a model has changed."""
        for text in self.texts.values():
            text.analysis = None
            self.start(text, 0.0)

    async def _run(self, text: Text, stopped: threading.Event, wait: float) -> None:
        if wait:
            await asyncio.sleep(wait)
        if stopped.is_set():
            return
        await self._analyse(text, stopped)
        if not stopped.is_set() and text.is_current:
            self.publish(text)

    async def _analyse(self, text: Text, stopped: threading.Event) -> None:
        name = text.uri if text.path is None else str(text.path)
        loop = asyncio.get_running_loop()
        find = partial(self._table, loop, text.uri)
        opened = {key: one.text for one in self.texts.values() if (key := one.place) is not None}

        parents: set[Path | None] = set()

        def read_parent(path: Path) -> str:
            parents.add(path.resolve())
            found = opened.get(path.resolve())
            return read_saved(path) if found is None else found

        work = partial(
            analyse,
            text.text,
            text.path,
            name,
            find,
            stopped.is_set,
            version=text.version,
            read_parent=read_parent,
        )
        try:
            analysis = await asyncio.to_thread(work)
        except Cancelled:
            return
        if not stopped.is_set():
            text.analysis, text.parents = analysis, parents

    async def current(self, uri: str) -> Analysis | None:
        """The analysis of the text as it is now; None for a text that is not open."""
        while (text := self.texts.get(uri)) is not None:
            if text.is_current:
                return text.analysis
            if text.task is None or text.task.done():
                self.start(text, 0.0)
            assert text.task is not None
            await asyncio.shield(text.task)
        return None

    # -- models ----------------------------------------------------------------------------

    def _table(
        self, loop: asyncio.AbstractEventLoop, uri: str, file: ast.File
    ) -> LayerTable | None:
        """The table for a linked file. In the thread of the analysis."""
        try:
            wanted = wanted_model(file, self.settings, self.root)
        except Refused as refused:
            loop.call_soon_threadsafe(self._say_once, str(refused))
            return None
        if wanted is None:
            return None
        found = self.tables.get(wanted)
        if found is None:
            loop.call_soon_threadsafe(self._want, uri, wanted)
        elif isinstance(found, TableError):
            names = " or ".join(wanted.specs)
            loop.call_soon_threadsafe(self._say_once, f"no layers of {names}: {found}")
        return found if isinstance(found, LayerTable) else None

    def _want(self, uri: str, wanted: Wanted) -> None:
        task = asyncio.ensure_future(self._make(uri, wanted))
        self.wanting.add(task)
        task.add_done_callback(self.wanting.discard)

    async def _make(self, uri: str, wanted: Wanted) -> None:
        await self.tables.make(wanted)
        text = self.texts.get(uri)
        if text is not None:
            text.analysis = None
            self.start(text, 0.0)

    def _say_once(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.say(message)

    def end(self) -> None:
        """Stop what is in flight, and the children."""
        for text in self.texts.values():
            text.stopped.set()
        for making in self.tables.making.values():
            making.cancel()
