"""Run folders with damaged, foreign or half-written files: a page, or a sentence with the place."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_job import call

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.report import page
from dcil_dsl.extras.report.differences import show_differences
from dcil_dsl.extras.report.listing import show_list
from dcil_dsl.extras.report.read import read_run
from dcil_dsl.extras.report.weights import StoredWeights, read_weights
from dcil_dsl.plan.text import PLAIN

OTHERS = {
    "sensitivity.json": {"levels": [0.5], "layers": [{"parameter": "0.weight", "losses": [0.1]}]},
    "bench.json": {"times": [{"engine": "a", "batch": 1, "threads": 1, "median": 0.01}]},
}
FILES = ("report.json", "start.json", "command.json", "metrics.jsonl", *OTHERS)
VALUES = (None, "x", [], {}, -1, math.nan)


@pytest.fixture
def run(two_runs, tmp_path):
    """A whole run without its tensors, with everything that a page may read."""
    shutil.copytree(two_runs / "run", tmp_path / "run")
    for name, content in OTHERS.items():
        (tmp_path / "run" / name).write_text(json.dumps(content))
    return tmp_path / "run"


def places(value: object, above: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Every place in a tree of JSON; of a list the first element's."""
    yield above
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = [*value.items()]
    elif isinstance(value, list):
        inner = [*enumerate(value[:1])]
    for key, one in inner:
        yield from places(one, (*above, key))


def changed(tree: object, place: tuple[object, ...], value: object) -> object:
    """The tree with another value at a place; without it where the value is `changed`."""
    if not place:
        return value
    tree = copy.deepcopy(tree)
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    if value is changed:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return tree


def every_screen(run: Path) -> None:
    record = read_run(run)
    page.make_page([record], [StoredWeights()], ["proof"])
    page.make_page([record, record], [StoredWeights()] * 2, ["proof"] * 2)
    show_differences([record, record], PLAIN)
    show_list([record], PLAIN)


@pytest.mark.parametrize("name", FILES)
def test_a_value_that_is_not_as_it_has_to_be_never_ends_in_a_traceback(name, run, monkeypatch):
    monkeypatch.setattr(page, "_own", lambda name: "")
    file, refused = run / name, 0
    text = file.read_text().splitlines()[0] if name == "metrics.jsonl" else file.read_text()
    whole = json.loads(text)
    every_screen(run)
    for place in places(whole):
        for value in (*VALUES, *([changed] if place else [])):
            file.write_text(json.dumps(changed(whole, place, value)) + "\n")
            try:
                every_screen(run)
            except InputError as error:
                refused += 1
                assert name in error.message
    assert refused


def test_the_place_of_the_first_wrong_value_is_named(run):
    (run / "report.json").write_text('{"result": {"step": 1, "accuracies": {"sparse": 5}}}')
    with pytest.raises(InputError, match=r"report.json: result.accuracies.sparse: "):
        read_run(run)
    (run / "metrics.jsonl").write_text('{"epoch": 1, "step": 8, "top1": {"sparse": "high"}}\n')
    (run / "report.json").unlink()
    with pytest.raises(InputError, match=r"metrics.jsonl:1: not the line of an epoch: sparse: "):
        read_run(run)


@pytest.mark.parametrize("name", ["report.json", "plan.json", "recipe.prune", "start.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_half_written_file_is_named_or_left_out(name, content, run, capsys):
    (run / name).write_bytes(content)
    status = call("report", run, "--out", run / "page.html")
    said = capsys.readouterr()
    assert status in (0, 2) and "Traceback" not in said.err
    assert status == 0 or name in said.err


@pytest.mark.parametrize("name", ["sparse.safetensors", "checkpoint/last.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, None])
def test_a_page_without_readable_tensors_says_so(name, content, run, capsys):
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    assert call("report", run, "--out", run / "page.html") in (0, 1)
    text = (run / "page.html").read_text()
    assert ("sparse.safetensors" if "sparse" in name else "pruned weights") in text


def test_a_page_of_many_runs_draws_fewer_bitmaps_of_each(two_runs):
    record = read_run(two_runs / "run")
    found = read_weights(record, most_bitmaps=1)
    assert [bool(layer.bitmap) for layer in found.layers] == [False, True]
    assert "Bitmaps are drawn of the largest layers: 1." in found.notes


def test_a_run_that_was_not_evaluated_in_each_epoch_shows_its_latest_values(run):
    """As with --evaluate-every 2, killed in the third epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {"top1": {"sparse": 0.25, "dense": 0.5}, "top5": {"sparse": 0.5, "dense": 0.5}}
    first = {key: value for key, value in lines[0].items() if key not in values}
    third = first | {"epoch": 3, "step": 24}
    second = lines[1] | values
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in (first, second, third))
    )
    (run / "report.json").unlink()
    record = read_run(run)
    assert record.score == 0.25 and record.result["step"] == 24
