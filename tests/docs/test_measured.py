"""Figures of the pages against the files of measurements that they name."""

import json
import re
from collections import Counter

from support.pages import ROOT


def test_the_pages_count_the_models_of_the_newest_measurement():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    file = re.search(r"\.\./(benchmarks/results/coverage[\w.-]+\.json)", page)[1]
    models = json.loads((ROOT / file).read_text())["models"]
    tables = {
        cells[0].strip(): [int(cell) for cell in cells[1:5]]
        for cells in (row.strip("|").split("|") for row in re.findall(r"^\| .*%.* \|$", page, re.M))
    }
    counted = {name: Counter() for name in tables}
    for name, entry in models.items():
        counted[name.partition("/")[0]][entry["status"]] += 1
    assert tables == {
        name: [
            count.total(),
            count["exact"],
            count["refused"],
            count["inexact"] + count["failed"],
        ]
        for name, count in counted.items()
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    exact = sum(count["exact"] for count in counted.values())
    assert f"| models | {exact} of {len(models)} from " in readme
