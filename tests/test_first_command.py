"""The README's first command, with a small recipe in place of its own: what it leaves, and where.

`.ci/run` runs the very line. Nothing is given here that the line does not give.
"""

from __future__ import annotations

import re
import subprocess
from datetime import date
from pathlib import Path

from support.tiny_job import NET, RECIPE, call

ROOT = Path(__file__).parent.parent
FILES = {
    "recipe.prune",
    "resolved.prune",
    "plan.json",
    "command.json",
    "model.txt",
    "start.json",
    "data.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoint",
    "sparse.safetensors",
    "report.json",
}


def test_without_options_a_run_lies_in_runs_under_recipe_date_and_number(tmp_path, monkeypatch):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    today = date.today().isoformat()
    for _ in range(2):
        assert call("compile", "tiny.prune", "--model", "net.py:Net", "--train", "synthetic") == 0
    assert {path.name for path in Path("runs").iterdir()} == {f"tiny-{today}-1", f"tiny-{today}-2"}
    for run in Path("runs").iterdir():
        assert {path.name for path in run.iterdir()} == FILES
        assert call("verify", run) == 0


def test_ci_runs_both_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark, word in (("first", "dcil-compile recipes/quickstart.prune"), ("tests", "pytest")):
        (line,) = re.findall(rf"^<!-- {mark} -->\n```sh\n(.*)\n```$", readme, re.MULTILINE)
        assert word in line and "--out" not in line
        assert f"$(command_of {mark})" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
