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


RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = [
    *(("resnet50", share) for share in (0.8, 0.9, 0.95)),
    ("resnet50.prune", None),
    *(("minilm", share) for share in (0.8, 0.9, 0.95)),
]


def table_after(page, heading):
    """The cells of the first table behind a heading, by the first one of their row."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(heading)[2]
    rows = re.search(r"(?:^\|.*\|\n)+", text, re.M)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_sizes_of_the_formats_are_the_measured_ones():
    """A format that stores zeros like other numbers was measured at one share; an empty cell was
    not measured."""
    rows = json.loads((RESULTS / "formats-sizes-cpu-2026-11-30.json").read_text())["rows"]
    sizes = {(row["network"], row["target"], row["format"]): row["bytes"] for row in rows}
    for name, *cells in table_after("docs/deploy.md", "### Sizes"):
        format = name.strip("`")
        for (network, share), cell in zip(COLUMNS, cells, strict=True):
            others = [(network, share), (network, 0.9), (network.partition(".")[0], 0.9)]
            is_dense = not format.startswith(("packed", "cpu"))
            tried = others if is_dense else others[:1]
            found = [sizes[(*key, format)] / 1e6 for key in tried if (*key, format) in sizes]
            assert cell == ("" if not found else f"{found[0]:.1f}"), (format, network, share)


def test_the_accuracies_of_int8_are_the_measured_ones():
    rows = json.loads((RESULTS / "formats-int8-cpu-2026-11-30.json").read_text())["rows"]
    for network, format, seeds, *shares in table_after("docs/deploy.md", "### int8"):
        name = "resnet18" if "ResNet-18" in network else "mlp"
        mine = [row for row in rows if (row["network"], f"`{row['format']}`") == (name, format)]
        mine.sort(key=lambda row: row["seed"])
        assert seeds == ", ".join(str(row["seed"]) for row in mine)
        for kind, cell in zip(("float32", "int8"), shares, strict=True):
            assert cell == ", ".join(f"{row[kind]:.2f}" for row in mine)


def test_the_report_of_vela_is_the_measured_one():
    rows = json.loads((RESULTS / "formats-int8-cpu-2026-11-30.json").read_text())["rows"]
    mine = [row for row in rows if (row["network"], row["format"]) == ("mlp", "ethos-u85")]
    told = table_after("docs/how-to/deploy-ethos-u.md", "The same with three seeds")
    assert len(told) == len(mine) == 3
    for cells, row in zip(told, sorted(mine, key=lambda row: row["seed"]), strict=True):
        sizes, cycles = (
            " to ".join(f"{row[kind][key]:{form}}" for kind in ("dense", "sparse"))
            for key, form in (("encoded_kib", ",.1f"), ("total_cycles", ",.0f"))
        )
        assert cells == [
            str(row["seed"]),
            f"{row['float32']:.2f}%",
            f"{row['int8']:.2f}%",
            f"{sizes} KiB",
            cycles,
        ]
