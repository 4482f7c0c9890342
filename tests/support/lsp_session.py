"""A session with `dcil lsp` in an empty workspace, and a table of the layers of a small model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import pytest_asyncio
import pytest_lsp
from lsprotocol import types as t

from dcil_dsl.extras.lsp.analysis import analyse
from dcil_dsl.extras.lsp.models import ServerSettings, wanted_model
from support.editor import Editor

RECIPE = """language 1

let target = 80%
let warm   = 20% run

model "torchvision:resnet18"

data digits { batch_size = 64 }

layers shortcuts = Conv2d in "layer?.0.downsample"

prune Conv2d to global(target) { schedule = cubic(warm..75% run) }
keep  first Conv2d, shortcuts

mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  private BatchNorm2d

  loss cross_entropy(sparse)
  loss kl(student=dense, teacher=sparse) from warm

  deploy sparse
}

train {
  epochs    = 15ep
  optimizer = sgd(lr=0.01, momentum=0.9)
}
"""


@pytest.fixture
def text() -> str:
    """A sound recipe for the model of `table`."""
    return RECIPE


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The layers of a ResNet-18, as a child of the server writes them."""
    from dcil_dsl.extras.lsp.layer_table import main

    file = tmp_path_factory.mktemp("table") / "resnet18.json"
    asked = {"specs": ["torchvision:resnet18"], "classes": 10, "options": {}, "image_size": 32}
    main(json.dumps(asked | {"channels": 3}), str(file))
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, table: dict) -> Path:
    """A cache in which the table of RECIPE's model lies."""
    base = tmp_path_factory.mktemp("cache")
    folder = base / "dcil" / "layers"
    folder.mkdir(parents=True)
    file = analyse(RECIPE, None, "a").file
    assert file is not None
    for settings in (ServerSettings(), ServerSettings(model="torchvision:resnet18")):
        wanted = wanted_model(file, settings, None)
        assert wanted is not None
        (folder / f"{wanted.key()}.json").write_text(json.dumps(table))
    return base


def make_client():
    """A client that keeps the version of each publication."""
    client = pytest_lsp.make_test_lsp_client()
    client.versions = []
    features = client.protocol.fm.features
    keep = features[t.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS]

    def published(params: t.PublishDiagnosticsParams) -> None:
        keep(params)
        client.versions.append((params.uri, params.version))

    features[t.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS] = published
    return client


async def connected(folder: Path, cache: Path, settings: dict) -> Editor:
    """An editor with a server of its own, whose workspace is the folder."""
    client = make_client()
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONSAFEPATH": "1"}
    await client.start_io(sys.executable, "-m", "dcil_dsl", "lsp", env=env)
    await client.initialize_session(
        t.InitializeParams(
            capabilities=pytest_lsp.client_capabilities("visual-studio-code"),
            workspace_folders=[t.WorkspaceFolder(folder.as_uri(), "work")],
            initialization_options=settings,
        )
    )
    return Editor(client, folder)


async def ended(editor: Editor) -> None:
    await editor.client.shutdown_session()
    await editor.client.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def start(tmp_path: Path, cache: Path):
    """start(model=..., trusted=...) -> an Editor in the folder `work` of tmp_path."""
    editors = []
    (tmp_path / "work").mkdir()

    async def started(**settings: object) -> Editor:
        editors.append(await connected(tmp_path / "work", cache, settings))
        return editors[-1]

    yield started
    for one in editors:
        await ended(one)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, cache: Path):
    """One server without settings for the tests of a file."""
    editor = await connected(tmp_path_factory.mktemp("workspace"), cache, {})
    yield editor
    await ended(editor)


@pytest_asyncio.fixture(loop_scope="module")
async def editor(shared: Editor, tmp_path: Path):
    """The shared server, in a folder of the test's own."""
    folder = shared.folder / tmp_path.name
    folder.mkdir()
    one = Editor(shared.client, folder)
    yield one
    for uri in one.texts:
        closed = t.DidCloseTextDocumentParams(t.TextDocumentIdentifier(uri))
        one.client.text_document_did_close(closed)
