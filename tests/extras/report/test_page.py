"""The page of `dcil report`: complete, closed, drawn by a browser without an error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.tiny_job import call

CHROMIUM = shutil.which("chromium")
# Moves the pointer to the last mark of every chart, and keeps what each then shows.
POINT = """<script>
addEventListener("load", () => document.querySelectorAll("figure[data-chart]").forEach((figure) => {
  const mark = [...figure.querySelectorAll('[aria-label] circle, [aria-label] rect')].pop();
  const box = mark.getBoundingClientRect();
  const at = {bubbles: true, pointerType: "mouse",
    clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
  ["pointerenter", "pointermove"].forEach((kind) =>
    mark.closest("svg").dispatchEvent(new PointerEvent(kind, at)));
  setTimeout(() => { figure.dataset.tip = [...figure.querySelectorAll('[aria-label="tip"] tspan')]
    .map((part) => part.textContent.replaceAll("\\u200b", "").trim()).filter(Boolean).join("|");
  }, 500);
}));
</script>"""
HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")


@pytest.fixture(scope="module")
def pages(two_runs, tmp_path_factory):
    """One page of one run, and one of two."""
    out = tmp_path_factory.mktemp("pages")
    assert call("report", two_runs / "run", "--out", out / "one.html") == 0
    assert call("report", two_runs / "run", two_runs / "other", "--out", out / "two.html") == 0
    return out


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *HEADLESS, "--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text())
    return json.loads(text)


def test_a_page_fetches_nothing_and_is_small(pages):
    for page in pages.iterdir():
        text = page.read_text()
        assert "default-src 'none'" in text
        assert not re.search(r"""(?:src|href)=["'](?!data:)""", text.partition("<script")[0])
        assert page.stat().st_size < 3_000_000


def test_the_verdict_says_what_was_asked_measured_and_proved(pages, two_runs):
    text = (pages / "one.html").read_text()
    report = json.loads((two_runs / "run" / "report.json").read_text())["result"]
    assert "asks for 90% zeros" in text and "Verified:" in text
    assert f"sparse (deployed) {report['accuracies']['sparse']['top1']:.2%}" in text
    assert f"cost {report['cost']:.2f} dense runs" in text
    assert "The recipe expects sparsity &gt;= 89%: holds." in text


def test_a_page_has_each_section(pages):
    text = (pages / "one.html").read_text()
    for title in (
        *("Training", "Layers", "Stability of the masks", "Sizes of the weights", "Sensitivity"),
        *("Layer by layer", "Where the zeros lie", "Size and speed", "Recipe", "About the run"),
    ):
        assert re.search(f"<h[23]>{title}</h[23]>", text), title
    assert text.count("data:image/png") == 2
    assert "Not measured" in text and "bench.json is missing" in text


def test_the_page_of_two_runs_begins_with_what_differs(pages):
    text = (pages / "two.html").read_text()
    assert text.index("What differs") < text.index("<h2>Training")
    assert "target.sparsity: 0.9 in" in text and "train.seed: 0 in" in text
    assert len(data_of(pages / "two.html")["runs"]) == 2


def test_the_curves_are_those_of_the_metrics(pages, two_runs):
    lines = (two_runs / "run" / "metrics.jsonl").read_text().splitlines()
    data = data_of(pages / "one.html")
    for epoch, line in enumerate(map(json.loads, lines)):
        drawn = [p for p in data["metrics"] if p["step"] == line["step"]]
        assert {p["series"]: p["value"] for p in drawn} == line["top1"]
        flips = {p["series"]: p["count"] for p in data["flips"] if p["step"] == line["step"]}
        assert flips == {"flipped": line["mask_flips"], "revived": line["mask_revived"]}, epoch
    last = data["metrics"][-1]
    assert last["cost"] == pytest.approx(2 * last["step"])  # two paths on each batch


def test_text_of_a_recipe_does_not_become_markup(two_runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two_runs / "run", run)
    evil = "</script><script>alert(1)</script><img src=x>"
    (run / "recipe.prune").write_text(f"# {evil}\n")
    plan = json.loads((run / "plan.json").read_text())
    plan["recipe"]["title"] = evil
    (run / "plan.json").write_text(json.dumps(plan))
    assert call("report", run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)" in text and "<script>alert" not in text and "<img src=x" not in text


def test_an_unfinished_run_is_reported_without_what_is_missing(two_runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(two_runs / "run", run)
    for name in ("report.json", "sparse.safetensors", "recipe.prune"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0] + lines[1][:20])  # torn by a kill
    assert call("report", run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "The run has not finished: step" in text
    assert "report.json (the run has not finished), recipe.prune" in text
    assert "There is no exported file to verify" in text


def test_a_file_with_other_zeros_is_not_called_verified(two_runs, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    run = tmp_path / "run"
    shutil.copytree(two_runs / "run", run)
    with safe_open(run / "sparse.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        about = file.metadata()
    stored["3.weight"] = stored["3.weight"] + 1.0
    save_file(stored, run / "sparse.safetensors", about)
    assert call("report", run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "NOT VERIFIED" in text and "Verified:" not in text


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_file_with_the_same_zeros_and_other_numbers_is_not_called_verified(
    two_runs, tmp_path, has_checkpoint
):
    from safetensors import safe_open
    from safetensors.torch import save_file

    run = tmp_path / "run"
    shutil.copytree(two_runs / "run", run)
    if not has_checkpoint:
        shutil.rmtree(run / "checkpoint")
    with safe_open(run / "sparse.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        about = file.metadata()
    stored["3.weight"] = stored["3.weight"] * 10
    save_file(stored, run / "sparse.safetensors", about)
    assert call("verify", run / "sparse.safetensors") == 1
    assert call("report", run, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "NOT VERIFIED" in text and "Verified:" not in text
    assert "the digest differs" in text


def test_what_is_no_run_folder_is_refused_in_a_sentence(tmp_path, two_runs, capsys):
    assert call("report", tmp_path, "--out", tmp_path / "page.html") == 2
    assert "is not a run folder: it has no plan.json" in capsys.readouterr().err
    assert call("report", two_runs / "run", "--out", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_a_browser_draws_every_chart_without_an_error(pages, name):
    done = browse(pages / name, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    figures = re.findall(r"<figure data-chart=\"(\w+)\"([^>]*)>", done.stdout)
    assert {chart for chart, _ in figures} == {
        *("metric", "loss", "sparsity", "flips", "layers", "histogram")
    }
    assert all('data-drawn="yes"' in rest for _, rest in figures)
    assert done.stdout.count("<svg") >= len(figures)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_page_prints_to_pdf(pages, tmp_path):
    done = browse(pages / "two.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_each_chart_shows_the_values_under_the_pointer(pages, tmp_path, name):
    text = (pages / name).read_text()
    assert text.count("</body>") == 1
    page = tmp_path / name
    page.write_text(text.replace("</body>", POINT + "</body>"))
    done = browse(page, "--dump-dom", "--window-size=1400,1000")
    assert "CONSOLE" not in done.stderr
    tips = {
        chart: re.search('data-tip="(.*?)"', rest)[1]
        for chart, rest in re.findall(r"<figure data-chart=\"(\w+)\"([^>]*)>", done.stdout)
    }
    assert len(tips) == 6 and all(tips.values()), tips
    point = re.search(r"(sparse|dense): ([\d.]+)%\|step ([\d,]+)$", tips["metric"])
    assert point, tips["metric"]
    series, value, step = point.groups()
    shown = [
        one["value"]
        for one in data_of(page)["metrics"]
        if one["series"] == series and one["step"] == int(step.replace(",", ""))
    ]
    assert any(abs(100 * one - float(value)) <= 0.5 for one in shown), (tips, shown)
    assert "layer 8.weight" in tips["layers"]


def test_the_page_of_a_run_says_what_differs_from_the_recipe_it_extends(tmp_path, two_runs):
    shutil.copytree(two_runs / "run", tmp_path / "run")
    (tmp_path / "base.prune").write_text((tmp_path / "run/resolved.prune").read_text())
    child = tmp_path / "child.prune"
    child.write_text('language 1\nextends "base.prune"\ntrain { clip = 1 }\n')
    again = ["--model", two_runs / "net.py:Net", "--train", "synthetic", "--device", "cpu"]
    assert (
        call("compile", child, *again, "--quiet", "--max-steps", 1, "--out", tmp_path / "one") == 0
    )
    assert call("report", tmp_path / "one", "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "What differs from the recipe that it extends" in text
    assert '<span class="added">+ train.clip = 1</span>' in text


def test_the_verdict_says_where_the_run_started(pages, two_runs, tmp_path):
    start = json.loads((two_runs / "run/start.json").read_text())["metrics"]["top1"]
    assert f"Before training, unpruned: top1 {start:.2%}." in (pages / "one.html").read_text()
    shutil.copytree(two_runs / "run", tmp_path / "run")
    for text, said in (
        (
            '{"weights": "random"}',
            "started from random weights: before training it is right by chance, 1 in 10.",
        ),
        (None, "The accuracy before training was not measured."),
    ):
        (tmp_path / "run/start.json").write_text(text or "{}")
        assert call("report", tmp_path / "run", "--out", tmp_path / "page.html") == 0
        assert said in (tmp_path / "page.html").read_text()


def test_the_results_of_several_runs_wrap_on_a_narrow_screen(two_runs, tmp_path):
    out = tmp_path / "both.html"
    assert call("report", two_runs / "run", two_runs / "other", "--out", out) == 0
    text = out.read_text()
    assert '<table class="results">' in text
    assert "table.results td { white-space: normal;" in text.partition("@media (max-width")[2]
