"""The command line in a folder with a small recipe and a small model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import NET, answer
from support.two_paths import two_paths

from dcil_dsl.lang.fmt import format_text

RECIPE = format_text(
    two_paths(
        """
let target = 50%

prune Conv2d, Linear to global(target) { schedule = linear(0ep..1ep) }
"""
    )
)


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
        return answer(capsys, *arguments)

    return run
