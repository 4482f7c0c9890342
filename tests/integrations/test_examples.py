"""The examples of the page on other loops run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.library import needed

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-loops.md"
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```", PAGE.read_text(), re.S | re.M))
NEEDS = {"plain.py": (), "hf.py": ("transformers", "accelerate"), "lit.py": ("lightning",),
         "accelerated.py": ("accelerate",)}  # fmt: skip

SPARSE = "assert abs(float(({} == 0).float().mean()) - 0.8) < 0.005\n"
AFTER = {
    "plain.py": SPARSE.format("torch.load('sparse.pt')['0.weight']"),
    "accelerated.py": SPARSE.format("torch.load('sparse.pt')['0.weight']"),
    "lit.py": SPARSE.format("net.state_dict()['net.0.weight']"),
    "hf.py": "loaded = transformers.AutoModelForSequenceClassification.from_pretrained('out')\n"
    + SPARSE.format("loaded.bert.encoder.layer[0].intermediate.dense.weight"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs(name, tmp_path):
    for library in NEEDS[name]:
        needed(library)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    code = FILES[name]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15, "an example is short"
    (tmp_path / name).write_text(code + AFTER.get(name, ""))
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
