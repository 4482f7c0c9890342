"""The pages of the documentation as what can be run: files, commands, and why some are not run.

In:   Markdown. A comment in the line before a block says what it is: `<!-- file: NAME -->`,
      `<!-- copy: PATH -->` (a recipe, a folder or the files of another page come first),
      `<!-- exits 1 -->`, `<!-- not run: REASON -->`; `first` and `tests` mark the README's own.
Out:  the blocks in their order; the exit status of a command of dcil, called in this process.
Not:  no test.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dcil_dsl.cli import commands as cli

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    mark: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        lines = self.text.splitlines() if self.language == "sh" else []
        return [line for line in lines if line.strip()]


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(mark or "", language, body) for mark, language, body in BLOCK.findall(text)]


def write_files(page: str, folder: Path) -> None:
    for block in blocks_of(page):
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")


def copy(source: str, folder: Path) -> None:
    """A file or a folder of the repository, or the files that a page shows."""
    if source.endswith(".md"):
        write_files(source, folder)
    elif (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, folder / Path(source).name)
    else:
        shutil.copy(ROOT / source, folder)


def status_of(command: str, folder: Path) -> int:
    """The exit status of one line of a page; `folder` is the working directory."""
    words = shlex.split(command, comments=True)
    if words[0] not in ("dcil", "dcil-compile"):
        words[0] = sys.executable if words[0] == "python" else words[0]
        return subprocess.run(words, cwd=folder).returncode
    main = cli.main if words[0] == "dcil" else cli.main_compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.chdir(folder)
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code or 0
