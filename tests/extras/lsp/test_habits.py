"""What people do to an editor: errors while renaming, unsaved parents, CRLF, broken models."""

from __future__ import annotations

import asyncio

import pytest
from support.library import needed

from dcil_dsl.lang import loads

needed("pytest_lsp")
t = needed("lsprotocol.types")
JsonRpcException = needed("pygls.exceptions").JsonRpcException
pytestmark = pytest.mark.asyncio(loop_scope="module")
CHILD = 'language 1\nextends "parent.prune"\nprune Linear to target\n'


async def renamed(editor, uri, word, new):
    params = t.RenameParams(editor.named(uri), editor.at(uri, word), new)
    return (await editor.client.text_document_rename_async(params)).changes


async def soon(editor, uri, holds):
    """The diagnostics of a text once they are as wanted."""
    for _ in range(1200):
        found = editor.client.diagnostics.get(uri)
        if found is not None and holds(found):
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError(f"diagnostics stay {editor.client.diagnostics.get(uri)}")


def closed(editor, uri):
    editor.client.text_document_did_close(t.DidCloseTextDocumentParams(editor.named(uri)))
    editor.texts.pop(uri)


async def test_a_name_is_renamed_in_a_recipe_with_errors_of_meaning(editor, text):
    uri = editor.open(text.replace("momentum", "momentun"))
    after = editor.edited(uri, list((await renamed(editor, uri, "target", "goal"))[uri]))
    assert after == text.replace("momentum", "momentun").replace("target", "goal")


async def test_a_name_is_not_renamed_where_a_relative_cannot_be_read(editor, text):
    """The child would miss it afterwards."""
    uri = editor.open(text, "parent.prune")
    (editor.folder / "child.prune").write_text(CHILD + "train {\n")
    with pytest.raises(JsonRpcException, match="child.prune: cannot be read"):
        await renamed(editor, uri, "target", "goal")
    (editor.folder / "child.prune").write_text(CHILD)
    assert len(await renamed(editor, uri, "target", "goal")) == 2
    (editor.folder / "child.prune").unlink()
    orphan = 'language 1\nextends "gone.prune"\nlet target = 5%\n'
    child = editor.open(orphan, "child.prune")
    with pytest.raises(JsonRpcException, match="gone.prune: cannot be read"):
        await renamed(editor, child, "target", "goal")


async def test_a_child_is_checked_against_the_parent_as_the_editor_has_it(editor, text):
    parent = editor.open(text, "parent.prune")
    child = editor.open(CHILD, "b.prune")
    assert [one.code for one in await editor.diagnostics(child)] == []
    editor.change(parent, text.replace("target", "goal"), 2)  # not saved
    found = await soon(editor, child, lambda found: found)
    assert any("`target`" in one.message for one in found)
    closed(editor, parent)  # without saving
    await soon(editor, child, lambda found: not found)


async def test_carriage_returns_and_emoji_move_no_place(editor, text):
    given = text.replace(
        "language 1", 'language 1\n\nrecipe a { title = "\U0001f469\u200d\U0001f680" }'
    )
    uri = editor.open(given.replace("\n", "\r\n"))
    assert await editor.diagnostics(uri) == []
    edits = (await renamed(editor, uri, "target", "goal"))[uri]
    lines = [line.rstrip("\r") for line in editor.texts[uri].split("\n")]
    for edit in edits:
        line = lines[edit.range.start.line].encode("utf-16-le")
        part = line[2 * edit.range.start.character : 2 * edit.range.end.character]
        assert part.decode("utf-16-le") == "target"
    params = t.DocumentFormattingParams(editor.named(uri), t.FormattingOptions(2, True))
    (edit,) = await editor.client.text_document_formatting_async(params)
    assert loads(edit.new_text) == loads(given)


@pytest.mark.parametrize(
    "code, said",
    {
        "raise ValueError('not today')": "not today",
        "import os; os._exit(7)": "no layers",
        "import os; os.kill(os.getpid(), 11)": "no layers",
        "def net(:": "SyntaxError",
    }.items(),
)
async def test_a_model_that_fails_is_said_once_and_recipes_are_checked_without(
    start, text, code, said
):
    editor = await start(model="net.py:net", trusted=True)
    (editor.folder / "net.py").write_text(code + "\n")
    uri = editor.open(text.replace("momentum", "momentun"))
    for _ in range(1200):
        logged = [one.message for one in editor.client.log_messages]
        if logged:
            break
        await asyncio.sleep(0.1)
    assert len(logged) == 1 and said in logged[0] and "net.py:net" in logged[0]
    assert [one.code for one in await editor.diagnostics(uri)] == ["E212"]


async def test_a_file_that_is_deleted_while_it_is_open_is_still_answered(editor, text):
    uri = editor.open(text)
    (editor.folder / "a.prune").unlink()
    editor.change(uri, text + "nonsense\n", 2)
    assert [one.code for one in await editor.diagnostics(uri, 2)]
    editor.change(uri, text, 3)
    assert await editor.diagnostics(uri, 3) == []
    assert await editor.hover(uri, "cubic")
    assert len(await renamed(editor, uri, "target", "goal")) == 1


async def test_a_text_that_was_never_saved_has_all_features(editor, text):
    uri = "untitled:Untitled-1"
    editor.texts[uri] = text
    item = t.TextDocumentItem(uri, "prune", 1, text)
    editor.client.text_document_did_open(t.DidOpenTextDocumentParams(item))
    assert await editor.diagnostics(uri) == []
    after = editor.edited(uri, list((await renamed(editor, uri, "target", "goal"))[uri]))
    assert after == text.replace("target", "goal")
    editor.change(uri, 'language 1\nextends "parent.prune"\n', 2)
    assert [one.code for one in await editor.diagnostics(uri, 2)] == ["E201"]


async def test_two_thousand_rules_are_answered(editor, text):
    rules = "".join(f'prune "layer{i % 4 + 1}.*" to {i % 90 + 1}%\n' for i in range(2000))
    uri = editor.open(text.replace("keep  first", rules + "keep  first"))
    codes = {one.code for one in await editor.diagnostics(uri)}
    assert codes == {"W303"}
    params = t.DocumentSymbolParams(editor.named(uri))
    assert len(await editor.client.text_document_document_symbol_async(params)) > 2000
