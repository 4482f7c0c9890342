"""The language server: the features of the protocol over the other files of this folder.

In:   requests of an editor on standard input.
Out:  answers on standard output; diagnostics, which are the compiler's own, with the version of
      the text.
Not:  no torch, and no code of the folder that is open (models.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lsprotocol import types as t
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer

from dcil_dsl import __version__
from dcil_dsl.diagnostics import Diagnostic, RecipeError, Span
from dcil_dsl.extras.lsp import symbols
from dcil_dsl.extras.lsp.actions import Action, actions
from dcil_dsl.extras.lsp.analysis import Analysis
from dcil_dsl.extras.lsp.colours import MODIFIERS, TYPES, semantic_tokens
from dcil_dsl.extras.lsp.completion import complete
from dcil_dsl.extras.lsp.hints import inlay_hints, signature
from dcil_dsl.extras.lsp.hover import hover
from dcil_dsl.extras.lsp.models import ServerSettings
from dcil_dsl.extras.lsp.positions import TextLines
from dcil_dsl.extras.lsp.session import EditorSession, Text, path_of, uri_of
from dcil_dsl.extras.lsp.tree import Occurrence
from dcil_dsl.lang.fmt import format_text

UNUSED = ("W201", "W202")
SUFFIX = "*.prune"


def make_server() -> LanguageServer:
    """A server with every feature; `start_io` runs it."""
    # Whole texts: pygls counts lines of an incremental change as Python does, not the protocol.
    server = LanguageServer(
        "dcil", __version__, text_document_sync_kind=t.TextDocumentSyncKind.Full
    )
    session = EditorSession(
        lambda text: _publish(server, session, text), lambda why: _log(server, why)
    )
    _life(server, session)
    _reading(server, session)
    _names(server, session)
    _editing(server, session)
    return server


def _log(server: LanguageServer, message: str) -> None:
    server.window_log_message(t.LogMessageParams(t.MessageType.Info, message))


# -- diagnostics -------------------------------------------------------------------------------


def _publish(server: LanguageServer, session: EditorSession, text: Text) -> None:
    analysis = text.analysis
    assert analysis is not None
    found = [_diagnostic(analysis, one) for one in analysis.diagnostics]
    server.text_document_publish_diagnostics(
        t.PublishDiagnosticsParams(text.uri, found, version=analysis.version)
    )
    if analysis.table is not None and server.client_capabilities.workspace is not None:
        hints = server.client_capabilities.workspace.inlay_hint
        if hints is not None and hints.refresh_support:
            server.workspace_inlay_hint_refresh(None)


def _diagnostic(analysis: Analysis, one: Diagnostic) -> t.Diagnostic:
    span, message = one.span, one.message
    if one.label:
        message += f" ({one.label})"
    if one.help:
        message += f"\nhelp: {one.help}"
    related = [_related(label.span, label.text) for label in one.others]
    if span is not None and span.source is not analysis.source:  # a parent's: shown at `extends`
        message = f"{span.source.name}:{span.line}:{span.column}: {message}"
        related.insert(0, _related(span, one.message))
        extends = analysis.file.extends if analysis.file is not None else None
        span = extends.span if extends is not None else None
    return t.Diagnostic(
        range=analysis.lines.of(span) if span is not None else analysis.lines.range(0, 0),
        message=message,
        severity=t.DiagnosticSeverity.Error if one.is_error else t.DiagnosticSeverity.Warning,
        code=one.code,
        source="dcil",
        related_information=[each for each in related if each is not None] or None,
        tags=[t.DiagnosticTag.Unnecessary] if one.code in UNUSED else None,
    )


def _related(span: Span, text: str) -> t.DiagnosticRelatedInformation | None:
    location = _location(span)
    return None if location is None else t.DiagnosticRelatedInformation(location, text or "here")


def _location(span: Span) -> t.Location | None:
    """None for a text that has no file, such as that of --set."""
    name = span.source.name
    is_uri = "://" in name or name.startswith("untitled:")
    if not is_uri and not Path(name).is_absolute():
        return None
    uri = name if is_uri else uri_of(Path(name))
    return t.Location(uri, TextLines(span.source.text).of(span))


# -- life --------------------------------------------------------------------------------------


def _life(server: LanguageServer, session: EditorSession) -> None:
    @server.feature(t.INITIALIZE)
    def initialize(params: t.InitializeParams) -> None:
        session.settings = ServerSettings.of(params.initialization_options)
        folders = params.workspace_folders or []
        root = folders[0].uri if folders else params.root_uri
        session.root = path_of(root) if root else None

    @server.feature(t.WORKSPACE_DID_CHANGE_CONFIGURATION)
    async def configured(params: t.DidChangeConfigurationParams) -> None:
        session.settings = ServerSettings.of(params.settings, session.settings)
        session.restart()

    @server.feature(t.TEXT_DOCUMENT_DID_OPEN)
    async def opened(params: t.DidOpenTextDocumentParams) -> None:
        one = params.text_document
        session.open(one.uri, one.text, one.version)

    @server.feature(t.TEXT_DOCUMENT_DID_CHANGE)
    async def changed(params: t.DidChangeTextDocumentParams) -> None:
        uri = params.text_document.uri
        text = server.workspace.get_text_document(uri).source
        session.open(uri, text, params.text_document.version)

    @server.feature(t.TEXT_DOCUMENT_DID_SAVE)
    async def saved(params: t.DidSaveTextDocumentParams) -> None:
        session.restart()  # it may be a parent of others

    @server.feature(t.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    async def watched(params: t.DidChangeWatchedFilesParams) -> None:
        session.restart()

    @server.feature(t.TEXT_DOCUMENT_DID_CLOSE)
    async def closed(params: t.DidCloseTextDocumentParams) -> None:
        uri = params.text_document.uri
        session.close(uri)
        server.text_document_publish_diagnostics(t.PublishDiagnosticsParams(uri, []))

    @server.feature(t.SHUTDOWN)
    async def shut_down(params: None) -> None:
        session.end()


# -- reading -----------------------------------------------------------------------------------


def _reading(server: LanguageServer, session: EditorSession) -> None:
    @server.feature(
        t.TEXT_DOCUMENT_COMPLETION,
        t.CompletionOptions(trigger_characters=['"', ".", "(", "=", ",", "%"]),
    )
    async def completion(params: t.CompletionParams) -> t.CompletionList:
        analysis = await session.current(params.text_document.uri)
        if analysis is None:
            return t.CompletionList(False, [])
        # Typing goes on while the list is open: the next segment of a name is another list.
        return t.CompletionList(True, complete(analysis, analysis.lines.offset(params.position)))

    @server.feature(t.TEXT_DOCUMENT_HOVER)
    async def on_hover(params: t.HoverParams) -> t.Hover | None:
        analysis = await session.current(params.text_document.uri)
        offset = None if analysis is None else analysis.lines.offset(params.position)
        found = None if analysis is None or offset is None else hover(analysis, offset)
        if analysis is None or found is None:
            return None
        text, start, stop = found
        content = t.MarkupContent(t.MarkupKind.Markdown, text)
        return t.Hover(content, analysis.lines.range(start, stop))

    @server.feature(
        t.TEXT_DOCUMENT_SIGNATURE_HELP, t.SignatureHelpOptions(trigger_characters=["(", ","])
    )
    async def on_signature(params: t.SignatureHelpParams) -> t.SignatureHelp | None:
        analysis = await session.current(params.text_document.uri)
        if analysis is None:
            return None
        return signature(analysis, analysis.lines.offset(params.position))

    @server.feature(t.TEXT_DOCUMENT_INLAY_HINT)
    async def on_hints(params: t.InlayHintParams) -> list[t.InlayHint]:
        analysis = await session.current(params.text_document.uri)
        if analysis is None or not session.settings.hints:
            return []
        start, stop = map(analysis.lines.offset, (params.range.start, params.range.end))
        return inlay_hints(analysis, start, stop)

    @server.feature(t.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL, t.SemanticTokensLegend(TYPES, MODIFIERS))
    async def on_tokens(params: t.SemanticTokensParams) -> t.SemanticTokens:
        analysis = await session.current(params.text_document.uri)
        return t.SemanticTokens([] if analysis is None else semantic_tokens(analysis))

    @server.feature(t.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
    async def on_outline(params: t.DocumentSymbolParams) -> list[t.DocumentSymbol]:
        analysis = await session.current(params.text_document.uri)
        return [] if analysis is None else symbols.outline(analysis)

    @server.feature(t.TEXT_DOCUMENT_FOLDING_RANGE)
    async def on_folds(params: t.FoldingRangeParams) -> list[t.FoldingRange]:
        analysis = await session.current(params.text_document.uri)
        return [] if analysis is None else symbols.folds(analysis)


# -- names -------------------------------------------------------------------------------------


def _names(server: LanguageServer, session: EditorSession) -> None:
    def opened() -> dict[Path, str]:
        texts = {one.place: one.text for one in session.texts.values()}
        return {path: text for path, text in texts.items() if path is not None}

    def family(uri: str, analysis: Analysis) -> list[symbols.Opened]:
        path, texts = path_of(uri), opened()
        resolved = path.resolve() if path else None
        return symbols.family(analysis, resolved, _recipes(session, texts), texts)

    async def occurrences(
        uri: str, position: t.Position
    ) -> tuple[list[Occurrence], Occurrence | None, Analysis | None]:
        analysis = await session.current(uri)
        if analysis is None or analysis.file is None:
            return [], None, analysis
        files = family(uri, analysis)
        found = symbols.names_in(files)
        offset = analysis.lines.offset(position)
        return found, symbols.occurrence_at(found, analysis.source, offset), analysis

    @server.feature(t.TEXT_DOCUMENT_DEFINITION)
    async def definition(params: t.DefinitionParams) -> list[t.Location]:
        found, one, analysis = await occurrences(params.text_document.uri, params.position)
        if analysis is None:
            return []
        parent = symbols.parent_at(analysis, analysis.lines.offset(params.position))
        if parent is not None:
            nowhere = t.Range(t.Position(0, 0), t.Position(0, 0))
            return [t.Location(uri_of(parent), nowhere)] if parent.is_file() else []
        same = symbols.same_name(found, one) if one is not None else []
        return _locations(each.span for each in same if each.is_definition)

    @server.feature(t.TEXT_DOCUMENT_REFERENCES)
    async def references(params: t.ReferenceParams) -> list[t.Location]:
        found, one, _ = await occurrences(params.text_document.uri, params.position)
        same = symbols.same_name(found, one) if one is not None else []
        wanted = params.context.include_declaration
        return _locations(each.span for each in same if wanted or not each.is_definition)

    @server.feature(t.TEXT_DOCUMENT_PREPARE_RENAME)
    async def prepare(params: t.PrepareRenameParams) -> t.Range | None:
        _, one, analysis = await occurrences(params.text_document.uri, params.position)
        return None if one is None or analysis is None else analysis.lines.of(one.span)

    @server.feature(t.TEXT_DOCUMENT_RENAME, t.RenameOptions(prepare_provider=True))
    async def rename(params: t.RenameParams) -> t.WorkspaceEdit:
        found, one, analysis = await occurrences(params.text_document.uri, params.position)
        if one is None:
            why = "no name of a `let`, a path or `layers` stands here"
            if analysis is not None and analysis.file is None:
                why = "the recipe has errors of syntax"
            raise JsonRpcInvalidParams(why)
        texts = opened()
        assert analysis is not None
        files = family(params.text_document.uri, analysis)
        if broken := symbols.broken_relatives(files, _recipes(session, texts), texts):
            names = ", ".join(path.name for path in broken)
            raise JsonRpcInvalidParams(f"{names}: cannot be read, and may use the name too")
        try:
            spans = symbols.renamed(found, one, params.new_name)
        except symbols.NotRenamed as error:
            raise JsonRpcInvalidParams(str(error)) from None
        edits: dict[str, list[t.TextEdit]] = {}
        for place in _locations(spans):
            edits.setdefault(place.uri, []).append(t.TextEdit(place.range, params.new_name))
        return t.WorkspaceEdit(changes=edits)


def _locations(spans: Iterable[Span]) -> list[t.Location]:
    found = [_location(span) for span in spans]
    return [one for one in found if one is not None]


def _recipes(session: EditorSession, texts: dict[Path, str]) -> list[Path]:
    """The recipes of the workspace: those on the disk, and those that are open."""
    found = dict.fromkeys(texts)
    if session.root is not None and session.root.is_dir():
        for path in session.root.rglob(SUFFIX):
            if not any(part.startswith(".") for part in path.relative_to(session.root).parts):
                found.setdefault(path.resolve())
            if len(found) >= symbols.MOST_FILES:
                break
    return list(found)


# -- editing -----------------------------------------------------------------------------------


def _editing(server: LanguageServer, session: EditorSession) -> None:
    @server.feature(t.TEXT_DOCUMENT_CODE_ACTION, t.CodeActionOptions([t.CodeActionKind.QuickFix]))
    async def on_actions(params: t.CodeActionParams) -> list[t.CodeAction]:
        uri = params.text_document.uri
        analysis = await session.current(uri)
        if analysis is None:
            return []
        start, stop = map(analysis.lines.offset, (params.range.start, params.range.end))
        return [_action(analysis, uri, one) for one in actions(analysis, start, stop)]

    @server.feature(t.TEXT_DOCUMENT_FORMATTING)
    async def on_format(params: t.DocumentFormattingParams) -> list[t.TextEdit] | None:
        analysis = await session.current(params.text_document.uri)
        if analysis is None:
            return None
        try:
            text = format_text(analysis.text, analysis.source.name)
        except RecipeError:
            return None  # the diagnostics say why
        return [] if text == analysis.text else [t.TextEdit(analysis.lines.all(), text)]


def _action(analysis: Analysis, uri: str, one: Action) -> t.CodeAction:
    edit = t.TextEdit(analysis.lines.range(one.start, one.stop), one.text)
    mended = None if one.diagnostic is None else [_diagnostic(analysis, one.diagnostic)]
    return t.CodeAction(
        one.title,
        kind=t.CodeActionKind.QuickFix if mended else t.CodeActionKind.RefactorRewrite,
        diagnostics=mended,
        edit=t.WorkspaceEdit(changes={uri: [edit]}),
    )
