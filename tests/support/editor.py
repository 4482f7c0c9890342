"""A scripted editor: opens recipes in a language server and asks it things by words of the text.

In:   a client of pytest-lsp that runs `dcil lsp`, and the folder of the workspace.
Out:  answers of the server.
Not:  no assertion.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lsprotocol import types as t

SECONDS = 60  # a busy machine


class Editor:
    """One session."""

    def __init__(self, client: Any, folder: Path):
        self.client, self.folder = client, folder
        self.texts: dict[str, str] = {}

    def open(self, text: str, name: str = "a.prune") -> str:
        """Open a file with this text; its URI."""
        path = self.folder / name
        path.write_bytes(text.encode())
        uri = path.as_uri()
        self.texts[uri] = text
        item = t.TextDocumentItem(uri, "prune", 1, text)
        self.client.text_document_did_open(t.DidOpenTextDocumentParams(item))
        return uri

    def change(self, uri: str, text: str, version: int) -> None:
        """Replace the text, as if it was typed."""
        self.texts[uri] = text
        name = t.VersionedTextDocumentIdentifier(version, uri)
        change = t.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(t.DidChangeTextDocumentParams(name, [change]))

    async def diagnostics(self, uri: str, version: int = 1) -> list[t.Diagnostic]:
        """Those that are published for this version, or a later publication of it."""
        for _ in range(SECONDS * 20):
            if self.published(uri) >= version:
                return list(self.client.diagnostics[uri])
            await asyncio.sleep(0.05)
        raise TimeoutError(f"no diagnostics of version {version}")

    def published(self, uri: str) -> int:
        return max((v for u, v in self.client.versions if u == uri and v is not None), default=0)

    def at(self, uri: str, word: str, inside: int = 0) -> t.Position:
        """The position of a word's first letter, or `inside` letters further on."""
        before = self.texts[uri][: self.texts[uri].index(word) + inside]
        line = before.count("\n")
        last = before.rpartition("\n")[2]
        return t.Position(line, len(last.encode("utf-16-le")) // 2)

    def named(self, uri: str) -> t.TextDocumentIdentifier:
        return t.TextDocumentIdentifier(uri)

    async def labels(self, uri: str, word: str, inside: int | None = None) -> dict[str, Any]:
        """The completions behind a word, by their labels."""
        place = self.at(uri, word, len(word) if inside is None else inside)
        params = t.CompletionParams(self.named(uri), place)
        found = await self.client.text_document_completion_async(params)
        return {item.label: item for item in found.items}

    async def hover(self, uri: str, word: str, inside: int = 1) -> str:
        params = t.HoverParams(self.named(uri), self.at(uri, word, inside))
        found = await self.client.text_document_hover_async(params)
        return "" if found is None else found.contents.value

    async def actions(self, uri: str, word: str) -> list[t.CodeAction]:
        place = self.at(uri, word)
        params = t.CodeActionParams(self.named(uri), t.Range(place, place), t.CodeActionContext([]))
        return list(await self.client.text_document_code_action_async(params))

    def edited(self, uri: str, edits: list[t.TextEdit]) -> str:
        """The text with some edits made."""
        lines = self.texts[uri].split("\n")

        def offset(place: t.Position) -> int:
            before = sum(len(line) + 1 for line in lines[: place.line])
            line = lines[place.line].encode("utf-16-le")[: 2 * place.character]
            return before + len(line.decode("utf-16-le"))

        text = self.texts[uri]
        for edit in sorted(edits, key=lambda e: offset(e.range.start), reverse=True):
            text = text[: offset(edit.range.start)] + edit.new_text + text[offset(edit.range.end) :]
        return text
