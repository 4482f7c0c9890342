"""A recipe trained at several values and seeds: `dcil sweep`.

In:   a recipe, the lists of values, the number of seeds, the options of each run.
Out:  a folder with sweep.json, a run folder and a log for each run, results.csv, report.html.
Not:  no training here: each run is a `dcil compile` of its own, so that a failed one ends alone.

The same command again resumes: finished runs are kept, unfinished ones resume, missing ones start.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.report.read import RunRecord, read_run
from dcil_dsl.lang.shipped import path_of
from dcil_dsl.lang.tokens import Unreadable, read
from dcil_dsl.plan.text import Page, named_table, percent
from dcil_dsl.words.metrics import metric_text

REQUEST = "sweep.json"
INTERRUPTED = 130  # the status of a program that Ctrl-C ends
UNSAFE = re.compile(r"[^A-Za-z0-9.,_=%-]+")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: the values that it sets, its seed, its folder's name."""

    values: tuple[tuple[str, str], ...]
    seed: int
    name: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: status 0, or the status and the last line of its log. reused: not run."""

    run: SweepRun
    status: int
    reason: str = ""
    reused: bool = False


def read_lists(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """["target=80%,90%"] -> {"target": ("80%", "90%")}. A comma in brackets does not divide."""
    lists: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        values = tuple(value.strip() for value in _divide(text))
        if not equals or not name.strip() or not all(values):
            raise InputError(f"--vary {entry}: not NAME=A,B", help="--vary target=80%,90%,95%")
        if name.strip() in lists:
            raise InputError(f"--vary gives `{name.strip()}` twice")
        if len(set(values)) < len(values):
            raise InputError(f"--vary {entry}: a value is given twice")
        lists[name.strip()] = values
    return lists


def runs_of(lists: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[SweepRun]:
    """Every combination of the values, with every seed. InputError if two share a folder name."""
    runs = []
    for values in itertools.product(*lists.values()):
        pairs = tuple(zip(lists, values, strict=True))
        for seed in seeds:
            words = [f"{name}={value}" for name, value in pairs] + [f"seed={seed}"]
            runs.append(SweepRun(pairs, seed, UNSAFE.sub("_", "+".join(words))))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError("two runs of the sweep would have the same folder name")
    return runs


def open_sweep(folder: Path, request: Mapping[str, object]) -> None:
    """Make the folder, or check that it is of the same recipe, model, data and options.

    More values and more seeds than before are welcome.
    """
    file = folder / REQUEST
    text = json.dumps(request, indent=2, sort_keys=True) + "\n"
    try:
        if file.exists():
            if json.loads(file.read_text(encoding="utf-8")) != json.loads(text):
                raise InputError(
                    f"{folder} holds a sweep with another recipe, model, data or options",
                    help="name another folder with --out",
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty", help="name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use {folder}: {error}") from None


def run_all(
    runs: Sequence[SweepRun],
    folder: Path,
    command: Sequence[str],
    jobs: int,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Every run, `jobs` at a time; `tell` is called as each ends. None starts after one that was
    interrupted, as Ctrl-C interrupts all that are running."""
    stopped = threading.Event()

    def work(run: SweepRun) -> Outcome:
        if stopped.is_set():
            return Outcome(run, INTERRUPTED, "not started")
        outcome = run_one(run, folder, command)
        if outcome.status == INTERRUPTED:
            stopped.set()
        tell(outcome)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, runs))


def run_one(run: SweepRun, folder: Path, command: Sequence[str]) -> Outcome:
    """Train one run in a process of its own, unless it has finished before."""
    out, log = folder / run.name, folder / f"{run.name}.log"
    resume = (out / "plan.json").is_file()
    if resume and (out / "report.json").is_file():
        try:
            if read_run(out).report:
                return Outcome(run, 0, reused=True)
        except InputError as error:
            return Outcome(run, 2, error.message)
    words = [sys.executable, "-m", "dcil_dsl", "compile", *command]
    for name, value in run.values:
        words += ["--set", f"{name}={value}"]
    words += ["--seed", str(run.seed), "--out", str(out)] + (["--resume"] if resume else [])
    with open(log, "a", encoding="utf-8") as file:
        status = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT).returncode
    said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    errors = [line for line in said if "error" in line]
    reason = (errors or said or ["no output"])[-1] if status else ""
    return Outcome(run, status, reason.strip())


# -- results ---------------------------------------------------------------------------------------


def read_records(outcomes: Sequence[Outcome], folder: Path) -> list[RunRecord | None]:
    """The record of each run; None where it has no result, or cannot be read."""
    return [_record(folder / one.run.name) for one in outcomes]


def _record(run: Path) -> RunRecord | None:
    if not (run / "report.json").is_file():
        return None
    try:
        return read_run(run)
    except InputError:
        return None  # its outcome says why


def results_csv(outcomes: Sequence[Outcome], records: Sequence[RunRecord | None]) -> str:
    """A line for each run: its values, seed, status and every number of its result."""
    names = [name for name, _ in outcomes[0].run.values] if outcomes else []
    numbers: list[dict[str, float]] = [{} if one is None else _numbers(one) for one in records]
    columns = list(dict.fromkeys(name for found in numbers for name in found))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *names, "seed", "status", *columns])
    for outcome, found in zip(outcomes, numbers, strict=True):
        values = [value for _, value in outcome.run.values]
        row = [outcome.run.name, *values, outcome.run.seed, outcome.status]
        writer.writerow([*row, *(found.get(name, "") for name in columns)])
    return text.getvalue()


def show_sweep(outcomes: Sequence[Outcome], records: Sequence[RunRecord | None], page: Page) -> str:
    """A row for each combination of values: the mean over its seeds, and the sample deviation."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, outcome in enumerate(outcomes):
        groups.setdefault(outcome.run.values, []).append(i)
    rows = []
    for values, members in groups.items():
        found = [record for i in members if (record := records[i]) is not None]
        failed = sum(outcomes[i].status != 0 for i in members)
        done = f"{len(members) - failed} of {len(members)}"
        name = " ".join(f"{key}={value}" for key, value in values) or "as given"
        rows.append((name, _sparsity(found), *_scores(found), done))
    header = ("values", "sparsity", "mean", "deviation", "runs done")
    lines = named_table(header, rows, "lrrrr", 40, page)
    return "".join(f"{line}\n" for block in lines for line in block)


def _numbers(record: RunRecord) -> dict[str, float]:
    result = record.result
    keys = ("sparsity_asked", "sparsity_measured", "cost", "seconds", "step")
    found = {key: result[key] for key in keys if key in result}
    for path, values in result.get("accuracies", {}).items():
        found |= {f"{metric} {path}": value for metric, value in values.items()}
    return found


def _sparsity(records: Sequence[RunRecord]) -> str:
    values = [one.result["sparsity_measured"] for one in records]
    return percent(round(statistics.fmean(values), 4)) if values else "-"


def _scores(records: Sequence[RunRecord]) -> tuple[str, str]:
    scores = [one.score for one in records if one.score is not None]
    if not scores:
        return "-", "-"
    metric = records[0].metrics[0]
    spread = metric_text(metric, statistics.stdev(scores), ".2%") if len(scores) > 1 else "-"
    return f"{metric} {metric_text(metric, statistics.fmean(scores), '.2%')}", spread


def _divide(text: str) -> list[str]:
    """The parts between commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def request_of(recipe: str, model: str, data: str, options: Mapping[str, str]) -> dict[str, object]:
    """What sweep.json holds: all but the values and the seeds, which may grow."""
    try:
        text = read(path_of(recipe))
    except Unreadable as error:
        raise InputError(f"cannot read the recipe {recipe}: {error}") from None
    return {"recipe": text, "model": model, "data": data, "options": dict(options)}
