"""What the server publishes: the compiler's diagnostics, of the newest version; no code is run."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.library import needed

from dcil_dsl.diagnostics import RecipeError
from dcil_dsl.lang import loads

needed("pytest_lsp")
t = needed("lsprotocol.types")
pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = (
    "language 1\n\nprune Conv2 to 9\n\ntrain { epochs = 3 optimizer = sgd(lr=0.1, momentun=1) }\n"
)


async def test_a_sound_recipe_has_none_and_a_wrong_one_those_of_check(editor, text):
    assert await editor.diagnostics(editor.open(text)) == []
    uri = editor.open(WRONG, "b.prune")
    found = await editor.diagnostics(uri)
    with pytest.raises(RecipeError) as error:
        loads(WRONG)
    assert [one.code for one in found] == [one.code for one in error.value.diagnostics]
    for shown, told in zip(found, error.value.diagnostics, strict=True):
        assert shown.message.startswith(told.message)
        assert told.help is None or told.help in shown.message
        assert shown.source == "dcil" and shown.severity == t.DiagnosticSeverity.Error


async def test_columns_count_utf_16_units(editor):
    line = 'recipe x { title = "\U0001f600\u00e9" titel = 1 }'
    uri = editor.open(f"language 1\n{line}\n")
    found = next(one for one in await editor.diagnostics(uri) if one.code == "E212")
    assert found.range.start == editor.at(uri, "titel")
    assert found.range.start.character == len('recipe x { title = "') + 2 + 1 + 2
    assert found.range.end.character == found.range.start.character + 5


async def test_only_lines_of_the_protocol_are_lines(editor):
    text = "language 1\r\n# a\u2028b\x0cc\r\nnonsense\r\n"
    found = await editor.diagnostics(editor.open(text))
    assert [one.range.start.line for one in found if one.code == "E105"] == [2]


async def test_the_newest_version_is_published_and_those_between_are_not(editor, text):
    uri = editor.open(text)
    await editor.diagnostics(uri)
    for version in range(2, 12):
        editor.change(uri, text + f"nonsense{version}\n", version)
        await asyncio.sleep(0.01)
    found = await editor.diagnostics(uri, 11)
    assert any("nonsense11" in one.message for one in found)
    versions = [v for u, v in editor.client.versions if u == uri]
    assert versions[0] == 1 and versions[-1] == 11 and len(versions) <= 4


async def test_an_unused_definition_is_faded_and_a_warning(editor, text):
    uri = editor.open(text + "let spare = 1\n")
    (found,) = await editor.diagnostics(uri)
    assert found.code == "W201" and found.severity == t.DiagnosticSeverity.Warning
    assert list(found.tags) == [t.DiagnosticTag.Unnecessary]


async def test_a_second_place_is_related_information(editor, text):
    uri = editor.open(text.replace("let warm   = 20% run", "let warm = warm"))
    found = next(one for one in await editor.diagnostics(uri) if one.code == "E204")
    assert found.related_information and found.related_information[0].location.uri == uri


async def test_an_error_of_the_parent_is_shown_at_extends_with_its_place(editor):
    (editor.folder / "parent.prune").write_text("language 1\nprune to 90%\n")
    uri = editor.open('language 1\nextends "parent.prune"\n')
    found = (await editor.diagnostics(uri))[0]
    assert found.range.start.line == 1 and "parent.prune:2:7" in found.message
    assert found.related_information[0].location.uri.endswith("/parent.prune")


async def test_saving_the_parent_checks_its_children_again(editor, text):
    (editor.folder / "parent.prune").write_text(text)
    uri = editor.open('language 1\nextends "parent.prune"\n')
    assert await editor.diagnostics(uri) == []
    (editor.folder / "parent.prune").write_text("language 1\nprune to 90%\n")
    saved = t.DidSaveTextDocumentParams(t.TextDocumentIdentifier(uri))
    editor.client.text_document_did_save(saved)
    for _ in range(600):
        if editor.client.diagnostics[uri]:
            break
        await asyncio.sleep(0.05)
    assert editor.client.diagnostics[uri]


async def test_selectors_are_checked_against_the_cached_layers(editor, text):
    uri = editor.open(text.replace('"layer?.0.downsample"', '"layer?.0.downsampel"'))
    editor.change(uri, text.replace("first Conv2d", '"layer1.0.convv1"'), 2)
    (found,) = await editor.diagnostics(uri, 2)
    assert found.code == "E301" and "of ResNet" in found.message
    assert found.range.start == editor.at(uri, '"layer1.0.convv1"')
    (action,) = await editor.actions(uri, '"layer1.0.convv1"')
    assert action.edit.changes[uri][0].new_text == '"layer1.0.conv1"'


@pytest.mark.parametrize(
    "place, given",
    [
        ("momentum=0.9)", "momentum=0.9)\n  groups = [group(nowhere, lr_scale=10)]"),
        ("warm..75% run)", "warm..75% run)\n  bounds = [within(nowhere, floor=30%)]"),
    ],
    ids=["a group of weights", "a bound"],
)
async def test_layers_that_a_setting_names_are_checked_too(editor, text, place, given):
    layers = 'layers nowhere = "layer9"\n\nprune Conv2d'
    uri = editor.open(text.replace(place, given).replace("prune Conv2d", layers))
    found = await editor.diagnostics(uri)
    assert [one.code for one in found] == ["E301"] and '"layer9"' in found[0].message


async def test_a_rule_without_effect_is_told_as_by_the_compiler(editor, text):
    uri = editor.open(text + "prune Conv2d to 50%\n")
    codes = [one.code for one in await editor.diagnostics(uri)]
    assert codes == ["W303", "W303"]


async def test_closing_a_text_takes_its_diagnostics_away(editor):
    uri = editor.open(WRONG)
    assert await editor.diagnostics(uri)
    closed = t.DidCloseTextDocumentParams(t.TextDocumentIdentifier(uri))
    editor.client.text_document_did_close(closed)
    for _ in range(200):
        if not editor.client.diagnostics[uri]:
            break
        await asyncio.sleep(0.05)
    assert not editor.client.diagnostics[uri]


# -- a stranger's folder -----------------------------------------------------------------------

TRAP = "open('ran', 'w')\nraise SystemExit\n"


@pytest.fixture
def trap(tmp_path):
    """Modules in the workspace that leave a file behind when they are imported."""

    def set_in(folder):
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        for name in ("net", "torch", "typer", "sitecustomize"):
            (folder / f"{name}.py").write_text(code)
        info = folder / "evil-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[dcil.words]\nbad = net:Bad\n")
        return tmp_path / "ran"

    return set_in


async def test_a_recipe_that_names_code_or_packages_of_its_folder_runs_none(
    start, text, trap, monkeypatch
):
    editor = await start()
    ran = trap(editor.folder)
    for number, model in enumerate(('"net.py:net"', '"net:net"', '"hf:./evil"')):
        own = text.replace('"torchvision:resnet18"', model)
        assert await editor.diagnostics(editor.open(own, f"{number}.prune")) == []
    uses = text + 'recipe r { uses = ["evil"] }\n'
    assert [d.code for d in await editor.diagnostics(editor.open(uses, "u.prune"))] == ["E241"]
    assert not ran.exists()


async def test_a_setting_that_names_code_runs_it_in_a_trusted_workspace_alone(start, text, trap):
    editor = await start(model="net.py:net", trusted=False)
    ran = trap(editor.folder)
    assert await editor.diagnostics(editor.open(text)) == []
    logged = [one.message for one in editor.client.log_messages]
    assert any("is not trusted" in one for one in logged) and not ran.exists()


async def test_the_users_own_model_is_read_where_a_setting_names_it(start, text):
    editor = await start(model="net.py:net", trusted=True)
    (editor.folder / "net.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())\n"
    )
    uri = editor.open(text.replace("keep  first Conv2d", 'keep "nowhere"'))
    for _ in range(1200):
        if any(one.code == "E301" for one in editor.client.diagnostics.get(uri, ())):
            break
        await asyncio.sleep(0.1)
    assert any('"nowhere"' in one.message for one in editor.client.diagnostics[uri])


async def test_the_server_loads_no_torch(start, text, monkeypatch, tmp_path):
    """In a child, of all features on an open text; a module in the way of torch would fail."""
    editor = await start()
    uri = editor.open(text)
    await editor.diagnostics(uri)
    await editor.labels(uri, '"layer?.')
    await editor.hover(uri, "cubic")
    maps = [line for line in open(f"/proc/{pid_of(editor)}/maps") if "libtorch" in line]
    assert maps == []


def pid_of(editor) -> int:
    return editor.client._server.pid


def test_a_damaged_table_is_made_again(cache, tmp_path):
    from dcil_dsl.extras.lsp.analysis import analyse
    from dcil_dsl.extras.lsp.models import ServerSettings, Tables, wanted_model

    file = analyse('language 1\nmodel "torchvision:resnet18"\n', None, "a").file
    wanted = wanted_model(file, ServerSettings(), None)
    tables = Tables(tmp_path)
    place = tmp_path / f"{wanted.key()}.json"
    for content in ("", "{", "[]", json.dumps({"format": 0}), json.dumps({"format": 1})):
        place.write_text(content)
        assert tables.get(wanted) is None and not place.exists()
