"""Time engines in turn, a process for each, and put medians and spread into a table.

In:   a folder of an exported network, names of engines, batch sizes, numbers of threads.
Out:  Report: times of each engine, engines that are missing and why, the machine.
Not:  no time is better than the machine is quiet; the report holds its load.

Engines take turns sample by sample, so that a busy moment meets all of them. Each has a process of
its own, because thread pools of several engines in one process wait for each other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.bench.engines import ENGINES, Missing, Subject
from dcil_dsl.plan.text import table
from dcil_dsl.training.files import write_atomically

BENCH = "bench.json"
LIBRARIES = ("torch", "onnxruntime", "openvino")
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
SECONDS = 600  # that an engine may take to start


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
    """All times, and what they were measured on."""

    times: tuple[Times, ...]
    machine: dict[str, Any]

    def as_json(self) -> str:
        entries = [
            {**asdict(one), **({"median": one.median} if one.seconds else {})} for one in self.times
        ]
        return json.dumps({"machine": self.machine, "times": entries}, indent=1)

    def write(self, folder: str | Path) -> Path:
        """bench.json in a folder."""
        file = Path(folder) / BENCH
        write_atomically(file, lambda draft: _write(draft, self.as_json()))
        return file


def _write(draft: Path, text: str) -> None:
    draft.write_text(text + "\n", encoding="utf-8")


def bench_folder(
    folder: str | Path,
    engines: Sequence[str] = tuple(ENGINES),
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
) -> BenchReport:
    """Time an exported network. InputError for a damaged folder or an unknown engine."""
    if unknown := [name for name in engines if name not in ENGINES]:
        raise InputError(f"`{unknown[0]}` is not an engine", help=f"engines: {', '.join(ENGINES)}")
    if rounds < 1 or not batches or min([*batches, *threads, 1]) < 1:
        raise InputError("rounds, batch sizes and threads are 1 or more")
    Subject(folder, 1, 1)  # refuses a damaged folder here, once
    times = [
        one
        for batch in batches
        for count in threads
        for one in _together(str(folder), engines, batch, count, rounds)
    ]
    return BenchReport(tuple(times), describe_cpu())


def _together(
    folder: str, engines: Sequence[str], batch: int, threads: int, rounds: int
) -> list[Times]:
    """Start all engines, then take one sample of each in turn."""
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a library starts its threads
    started = []
    try:
        for name in engines:
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, folder, name, batch, threads), daemon=True
            )
            process.start()
            theirs.close()
            started.append((name, process, mine, _answer(mine)))
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    samples: dict[str, list[float]] = {name: [] for name in engines}
    problems = {name: answer for name, _, _, answer in started if answer != "ready"}
    for _ in range(rounds):
        for name, _, pipe, _ in started:
            if name in problems:
                continue
            try:
                pipe.send("run")
            except OSError:
                problems[name] = "its process ended"
                continue
            answer = _answer(pipe)
            if isinstance(answer, float):
                samples[name].append(answer)
            else:
                problems[name] = answer
    for _, process, pipe, _ in started:
        pipe.close()
        process.join(10)
        if process.is_alive():
            process.kill()
    return [
        Times(name, batch, threads, (), str(problems[name]))
        if name in problems
        else Times(name, batch, threads, tuple(samples[name]))
        for name in engines
    ]


def _answer(pipe: Connection) -> str | float:
    try:
        if not pipe.poll(SECONDS):
            return f"no answer within {SECONDS} seconds"
        answer: str | float = pipe.recv()
        return answer
    except (EOFError, OSError):
        return "its process ended"


def _serve(pipe: Connection, folder: str, engine: str, batch: int, threads: int) -> None:
    """The process of one engine: start it, then run it once for each word that arrives."""
    import torch

    torch.set_num_threads(threads)
    try:
        run = ENGINES[engine][1](Subject(folder, batch, threads))
        run(), run()
    except Missing as missing:
        pipe.send(str(missing))
        return
    except Exception as error:  # whatever an engine raises for a network that it does not take
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(min(_once(run), _once(run)))  # the first one finds its data in a far cache


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
        lines.append(f"load average {machine['load'][0]:.1f}: times hold on a quiet machine alone")
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
