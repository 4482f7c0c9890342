"""The command line in a folder with a small recipe and a small model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from dcil_dsl.cli import commands

RECIPE = """language 1

let target = 50%

prune Conv2d, Linear to global(target) { schedule = linear(0ep..1ep) }

mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  loss cross_entropy(sparse)
  loss cross_entropy(dense)

  deploy sparse
}

train {
  epochs    = 2ep
  optimizer = sgd(lr=0.1)
}
"""
NET = """
from torch import nn


def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, num_classes),
    )
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with good.prune, wrong.prune and net.py in it."""
    (tmp_path / "good.prune").write_text(RECIPE)
    (tmp_path / "wrong.prune").write_text(RECIPE.replace("lr=0.1", "lr=0.1, momentun=0.9"))
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dcil(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """dcil("check", "-", given=text) -> (status, stdout, stderr)."""

    def run(*arguments: str, given: str | bytes = "") -> tuple[int, str, str]:
        sent = given if isinstance(given, bytes) else given.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sent)))
        with pytest.raises(SystemExit) as end:
            commands.app(args=list(arguments), prog_name="dcil")
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return run
