"""Time engines in turn, a process for each, and put medians and spread into a table.

In:   a folder or file of an exported network, names of engines, batch sizes, numbers of threads.
Out:  BenchReport: times of each engine, engines that are missing and why, the machine.
Not:  the times are only as good as the machine is quiet; the report holds its load.

Engines take turns sample by sample, so that a busy moment meets all of them. Each has a process of
its own, because thread pools of several engines in one process wait for each other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.bench.engines import ENGINES, Missing, Subject
from dcil_dsl.extras.bench.exported import ExportedSubject, timed_format
from dcil_dsl.plan.text import table
from dcil_dsl.training.files import write_atomically

BENCH = "bench.json"
LIBRARIES = ("torch", "onnxruntime", "openvino")
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
SECONDS = 600  # that an engine may take to start
FEWEST_ROUNDS = 3  # where the time is limited
PAUSE = 0.004  # seconds between two samples, in which idle threads of the last engine fall asleep


@dataclass(frozen=True)
class Times:
    """One engine with one batch size and number of threads.

    seconds  of one run, in the order of the rounds
    problem  why there are none
    """

    engine: str
    batch: int
    threads: int
    seconds: tuple[float, ...] = ()
    problem: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class BenchReport:
    """All times, and what they were measured on.

    calibration  what int8 was calibrated on
    """

    times: tuple[Times, ...]
    machine: dict[str, Any]
    calibration: str = "noise"

    def as_json(self) -> str:
        entries = [
            {**asdict(one), **({"median": one.median} if one.seconds else {})} for one in self.times
        ]
        report = {"machine": self.machine, "calibration": self.calibration, "times": entries}
        return json.dumps(report, indent=1)

    def write(self, file: str | Path) -> Path:
        """The report as a file; in a folder as bench.json."""
        file = Path(file)
        file = file / BENCH if file.is_dir() else file
        write_atomically(file, lambda draft: _write(draft, self.as_json()))
        return file


def _write(draft: Path, text: str) -> None:
    draft.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Contestant:
    """One engine with one network.

    label        its name among the others
    work         the folder for files that engines of the same network share
    calibration  a file of examples for int8; None: noise
    """

    label: str
    engine: str
    folder: str
    work: str | None = None
    calibration: str | None = None


def bench_folder(
    folder: str | Path,
    engines: Sequence[str] = tuple(ENGINES),
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    calibration: str | Path | None = None,
) -> BenchReport:
    """Time an exported network. InputError for a damaged folder or an unknown engine."""
    check_settings(engines, batches, threads, rounds)
    if timed_format(Path(folder)) is None:
        Subject(folder, 1, 1)  # refuses a damaged folder here, once
    examples = None if calibration is None else str(calibration)
    with tempfile.TemporaryDirectory(prefix="dcil-bench-") as work:
        entries = [Contestant(name, name, str(folder), work, examples) for name in engines]
        with processes_of(entries, max(threads)) as started:
            times = [
                one
                for batch in batches
                for count in threads
                for one in measure_row(started, batch, count, rounds)
            ]
    return BenchReport(tuple(times), describe_cpu())


def check_settings(
    engines: Sequence[str], batches: Sequence[int], threads: Sequence[int], rounds: int
) -> None:
    """InputError for settings that mean nothing."""
    if unknown := [name for name in engines if name not in ENGINES]:
        raise InputError(f"`{unknown[0]}` is not an engine", help=f"engines: {', '.join(ENGINES)}")
    if not engines or not batches or not threads:
        raise InputError("there is no engine, batch size or number of threads to measure with")
    if rounds < 1 or min([*batches, *threads]) < 1:
        raise InputError("rounds, batch sizes and threads are 1 or more")
    for name, given in (("engines", engines), ("batch sizes", batches), ("threads", threads)):
        if len(set(given)) < len(given):
            raise InputError(f"the {name} name one of them twice")


class EngineProcess:
    """The process of one contestant, which waits for words: a pair to prepare, or a run."""

    def __init__(self, contestant: Contestant, most_threads: int):
        self.label = contestant.label
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, contestant, most_threads), daemon=True
        )
        self.process.start()
        theirs.close()

    def prepare(self, batch: int, threads: int) -> str:
        """Make the engine ready. Returns why it cannot run; empty where it can."""
        answer = self._ask((batch, threads))
        return "" if answer == "ready" else str(answer)

    def sample(self) -> float | str:
        """Seconds of one run, or why there are none."""
        return self._ask("run")

    def _ask(self, word: object) -> float | str:
        try:
            self.pipe.send(word)
        except OSError:
            return "its process ended"
        return self.answer()

    def answer(self) -> float | str:
        try:
            if not self.pipe.poll(SECONDS):
                self.process.kill()
                return f"no answer within {SECONDS} seconds"
            answer: float | str = self.pipe.recv()
            return answer
        except (EOFError, OSError):
            return "its process ended"

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def processes_of(
    contestants: Sequence[Contestant], most_threads: int
) -> Iterator[list[EngineProcess]]:
    """A process for each; they end with the block."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(most_threads)  # read when a library starts its threads
    started: list[EngineProcess] = []
    try:
        for contestant in contestants:
            started.append(EngineProcess(contestant, most_threads))
        for one in started:
            one.answer()  # all have their libraries before the first one tries its kernels
        yield started
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        for one in started:
            one.close()


def measure_row(
    started: Sequence[EngineProcess],
    batch: int,
    threads: int,
    rounds: int,
    seconds: float | None = None,
) -> list[Times]:
    """One sample of each engine in turn, for some rounds.

    seconds  that the rounds may take, from the first sample on; FEWEST_ROUNDS are always made
    """
    samples: dict[str, list[float]] = {one.label: [] for one in started}
    problems: dict[str, str] = {}
    for one in started:  # one after another, so that no trial of kernels disturbs another
        if problem := one.prepare(batch, threads):
            problems[one.label] = problem
    begin = perf_counter()
    for number in range(rounds):
        spent = perf_counter() - begin
        if seconds is not None and number >= FEWEST_ROUNDS and spent > seconds:
            break
        for one in started:
            if one.label in problems:
                continue
            sleep(PAUSE)
            answer = one.sample()
            if isinstance(answer, float):
                samples[one.label].append(answer)
            else:
                problems[one.label] = answer
    return [
        Times(label, batch, threads, (), problems[label])
        if label in problems
        else Times(label, batch, threads, tuple(taken))
        for label, taken in samples.items()
    ]


def _serve(pipe: Connection, contestant: Contestant, most_threads: int) -> None:
    """The process of one engine: prepare it, then run it once for each word that arrives."""
    import torch

    torch.set_num_threads(most_threads)
    pipe.send("started")
    subject: Subject | None = None
    run: Any = None
    while True:
        try:
            word = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if word == "run":
                # The first one finds its data in a far cache.
                pipe.send(min(_once(run), _once(run)))
                continue
            batch, threads = word
            run = None  # an engine's threads end before the next ones start
            torch.set_num_threads(threads)
            if subject is None:
                subject = _subject(contestant, batch, threads)
            run = ENGINES[contestant.engine][1](subject.of(batch, threads))
            run(), run()
            pipe.send("ready")
        except Missing as missing:
            pipe.send(str(missing))
        except Exception as error:  # whatever an engine raises for a network that it does not take
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _subject(contestant: Contestant, batch: int, threads: int) -> Subject:
    if timed_format(Path(contestant.folder)) is not None:
        return ExportedSubject(contestant.folder, batch, threads)
    return Subject(contestant.folder, batch, threads, contestant.work, contestant.calibration)


def _once(run: Any) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


def describe_cpu() -> dict[str, Any]:
    """The CPU, its features, the load and the versions."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    parts = (line.partition(":") for line in text.splitlines())
    lines = {key.strip(): value.strip() for key, _, value in parts}
    flags = (lines.get("flags") or lines.get("Features") or "").split()
    return {
        "cpu": lines.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "processors": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{name: _installed(name) for name in LIBRARIES},
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def show_report(report: BenchReport) -> str:
    """A table for each batch size and number of threads, and the machine."""
    machine = report.machine
    lines = [f"{machine['cpu']}, {machine['processors']} processors"]
    if machine["features"]:
        lines[0] += f": {', '.join(machine['features'])}"
    if machine["load"]:
        load = f"load average {machine['load'][0]:.1f}"
        lines.append(f"{load}: times are reliable only on a quiet machine")
    lines.append(f"int8 is calibrated on {report.calibration}")
    for batch, threads in dict.fromkeys((one.batch, one.threads) for one in report.times):
        own = [one for one in report.times if (one.batch, one.threads) == (batch, threads)]
        ours = next((one for one in own if one.engine == "dcil" and one.seconds), None)
        rows = [
            (
                one.engine,
                f"{1000 * one.median:.2f}",
                f"{100 * one.spread:.0f}%",
                f"{batch / one.median:.1f}",
                f"{one.median / ours.median:.2f}" if ours else "-",
                ENGINES[one.engine][0],
            )
            if one.seconds
            else (one.engine, "-", "-", "-", "-", one.problem[:80])
            for one in own
        ]
        header = ("engine", "ms", "spread", "per second", "time / dcil", "")
        lines += ["", f"batch {batch}, threads {threads}", ""]
        lines += table(header, rows, "lrrrrl")
    return "\n".join(lines) + "\n"
