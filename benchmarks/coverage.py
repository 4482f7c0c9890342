"""How much of many libraries compiles, and whether its gradients are those of two copies.

    python benchmarks/coverage.py [--sample N] [--quick] [--only "timm/*"] [--json FILE]
    python benchmarks/coverage.py --table [--json FILE]

Each model is built with fresh weights and small inputs; of what can be pruned a tenth of the layers
is kept and the others are pruned by 80 %, the norms are private, and the norm of one weight leaves
the model early (coverage_kept.py). It is compiled, a step is taken in training mode and one in
evaluation mode, and outputs, losses, every gradient and the statistics are held against two plain
copies of the model (two_copies.py). A model of each family that has a switch for checkpoints is
measured with that on as well. One process a model, with a limit of time and of memory. The
JSON is written after each, and the same command continues a run that was stopped. Exit status 1
where a model that was run is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "benchmarks" / "results" / "coverage.json"
LIBRARIES = (
    "timm",
    "transformers",
    "diffusers",
    "ultralytics",
    "segmentation_models_pytorch",
    "monai",
    "open_clip",
    "torchaudio",
    "torch_geometric",
    "x_transformers",
    "peft",
    "pytorchcv",
)
PACKAGES = ("torch", "torchvision", *LIBRARIES, "open_clip_torch", "x-transformers", "einops")
STATUSES = ("exact", "inexact", "refused", "failed")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help='a pattern: "timm/*"')
    parser.add_argument("--quick", action="store_true", help="nine small ones")
    parser.add_argument("--sample", type=int, metavar="N", help="N models of each library")
    parser.add_argument("--again", default="", help="run anew those that are: failed,refused,all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800, help="of one model")
    parser.add_argument("--memory", type=float, default=18.0, help="GB of one model")
    parser.add_argument("--float64-below", type=float, default=1.8e8, help="weights")
    parser.add_argument("--json", type=Path, default=DEFAULT)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--choose-timm", action="store_true", help="the smallest of each module")
    asked = parser.parse_args(arguments)
    report = json.loads(asked.json.read_text()) if asked.json.exists() else {"models": {}}
    if asked.table:
        print(table(report))
        return 0
    if asked.choose_timm:
        choose_timm()
        return 0
    from coverage_models import QUICK, all_cases

    names = [name for name in all_cases() if _wanted(name, asked, QUICK)]
    names = _sample(names, asked.sample)
    again = asked.again.split(",")
    due = [
        name
        for name in names
        if name not in report["models"] or {report["models"][name]["status"], "all"} & set(again)
    ]
    if asked.list:
        for name in names:
            print(f"{report['models'].get(name, {}).get('status', '-'):8} {name}")
        return 0
    run(due, report, asked)
    print(table(report))
    found = [report["models"][name]["status"] for name in due]
    return 0 if all(status == "exact" for status in found) else 1


def run(names: list[str], report: dict, asked: argparse.Namespace) -> None:
    """Each name in a process of its own; the report grows and is written after each."""
    from environment import commit, describe_machine, installed

    report["machine"] = describe_machine("cpu")
    versions = {package: installed(package) for package in PACKAGES}
    report["versions"] = {package: found for package, found in versions.items() if found}
    at = commit()  # once: the processes run the code that this one has imported
    context = _ready_to_fork()
    waiting, running = list(reversed(names)), []
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < asked.jobs:
                place = Path(folder) / f"{len(waiting)}.json"
                arguments = (waiting[-1], place, asked.float64_below)
                process = context.Process(target=_child, args=arguments)
                process.start()
                running.append(_Child(waiting.pop(), place, process))
            time.sleep(0.2)
            for child in list(running):
                entry = child.look(asked)
                if entry is not None:
                    running.remove(child)
                    _write(child.name, entry | {"commit": at}, report, asked.json)


def _ready_to_fork():
    """Import once what every model needs: seconds that a process each would spend anew."""
    import multiprocessing

    import coverage_one  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    for library in LIBRARIES:
        try:
            __import__(library)
        except ImportError:
            print(f"{library} is not installed: its models will be recorded as failed")
    return multiprocessing.get_context("fork")


def _child(name: str, place: Path, float64_below: float) -> None:
    from coverage_models import all_cases
    from coverage_one import measure

    with open(place.with_suffix(".said"), "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        entry = measure(all_cases()[name], float64_below)
        place.write_text(json.dumps(entry))


class _Child:
    """A process that works on one model."""

    def __init__(self, name: str, place: Path, process):
        self.name, self.place, self.process = name, place, process
        self.began, self.most = time.monotonic(), 0.0

    def look(self, asked: argparse.Namespace) -> dict | None:
        """What it has found, or why it never will; None while it works within its limits."""
        self.most = max(self.most, _gigabytes(self.process.pid))
        ended = None
        if self.most > asked.memory:
            ended = f"more than {asked.memory:g} GB of memory"
        elif time.monotonic() - self.began > asked.seconds:
            ended = f"more than {asked.seconds:g} seconds"
        if ended:
            self.process.kill()
        elif self.process.is_alive():
            return None
        self.process.join()
        if not ended and self.place.exists():
            return json.loads(self.place.read_text())
        lines = self.place.with_suffix(".said").read_text().splitlines()
        last = " ".join(lines[-1:])[:300]
        reason = ended or f"the process ended with {self.process.exitcode}: {last}"
        where = "limit" if ended else "process"
        return {"status": "failed", "where": where, "reason": reason, "peak_gb": self.most}


def _write(name: str, entry: dict, report: dict, place: Path) -> None:
    worst = [max(entry[mode].values()) for mode in ("train", "eval") if mode in entry]
    far = f"{max(worst):.0e}" if worst else ""
    report["models"][name] = entry
    report["models"] = dict(sorted(report["models"].items()))
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_suffix(".part")
    fresh.write_text(_lines(report))
    os.replace(fresh, place)
    seconds = str(entry.get("compile_seconds", ""))
    print(
        f"{entry['status']:8} {name:55} {far:7} {seconds:>8} s {entry.get('reason', '')[:120]}",
        flush=True,
    )


def _lines(report: dict) -> str:
    """JSON with a line a model, so that two runs can be compared by line."""
    models = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in report["models"].items()
    )
    head = "".join(
        f" {json.dumps(key)}: {json.dumps(report.get(key))},\n" for key in ("machine", "versions")
    )
    return f'{{\n{head} "models": {{\n{models}\n }}\n}}\n'


def _gigabytes(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 2**20
    except OSError:  # ended, or a system without /proc
        pass
    return 0.0


def _wanted(name: str, asked: argparse.Namespace, quick: tuple[str, ...]) -> bool:
    if asked.quick and name not in quick:
        return False
    return not asked.only or any(fnmatch(name, pattern) for pattern in asked.only)


def _sample(names: list[str], number: int | None) -> list[str]:
    """The first of each library in the order of the hashes of their names."""
    libraries: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: zlib.crc32(name.encode())):
        libraries.setdefault(name.partition("/")[0], []).append(name)
    chosen = {name for group in libraries.values() for name in group[:number]}
    return [name for name in names if name in chosen]


# -- what is printed -----------------------------------------------------------------------------


def table(report: dict) -> str:
    """The table for the README, and below it what is not exact, with its reason."""
    groups: dict[str, dict[str, dict]] = {}
    for name, entry in report["models"].items():
        groups.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = entry
    rows = [
        "| library | tried | exact | refused | not right | with opaque modules | "
        "opaque weights, mean | compiled in, median | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told = []
    for group, entries in groups.items():
        count = {s: sum(e["status"] == s for e in entries.values()) for s in STATUSES}
        times = [e["compile_seconds"] for e in entries.values() if "compile_seconds" in e]
        shares = [e["whole"]["share"] for e in entries.values() if "whole" in e]
        held = f"{statistics.mean(shares):.0%}" if shares else "-"
        opaque = sum(e["whole"]["modules"] > 0 for e in entries.values() if "whole" in e)
        middle = f"{statistics.median(times):.2f} s" if times else "-"
        worst = f"{max(times):.2f} s" if times else "-"
        rows.append(
            f"| {group} | {len(entries)} | {count['exact']} | {count['refused']} | "
            f"{count['inexact'] + count['failed']} | {opaque} | {held} | {middle} | {worst} |"
        )
        for name, entry in entries.items():
            if entry["status"] != "exact":
                told.append(f"- {group}, {name}: {entry['status']}, {_why(entry)}")
    exact = [e for e in report["models"].values() if e["status"] == "exact"]
    if exact:
        narrow = sum(e["dtype"] == "float32" for e in exact)
        far = max(
            (
                max(e[m].values())
                for e in exact
                for m in ("train", "eval")
                if e["dtype"] == "float64"
            ),
            default=0.0,
        )
        whole = [e["whole"]["share"] for e in exact if e["whole"]["modules"]]
        share = ""
        if whole:
            share = f", with {statistics.median(whole):.0%} of the weights in the median"
        rounded = sum("rounding" in e for e in exact)
        told.insert(
            0,
            f"The furthest of the exact ones in float64 is {far:.0e} away; {narrow} "
            f"were compared in float32. In {rounded} some gradient differs by more than "
            f"the bound and no more than the reference does from itself when its weights "
            f"move in their last bit. {len(whole)} have opaque modules"
            f"{share}.",
        )
    commits = Counter(entry.get("commit") for entry in report["models"].values())
    if len(commits) > 1:
        parts = ", ".join(f"{number} at {name}" for name, number in commits.items())
        told.insert(0, f"The models were run at more than one commit: {parts}.")
    return "\n".join([*rows, "", *told])


def _why(entry: dict) -> str:
    if entry["status"] == "inexact":
        parts = {
            f"{mode} {part}": value
            for mode in ("train", "eval")
            for part, value in entry[mode].items()
        }
        worst = max(parts, key=parts.get)
        return f"{worst} {parts[worst]:.1e} away"
    where = f" ({entry['where']})" if "where" in entry else ""
    return entry["reason"] + where


def choose_timm() -> None:
    """Print, for each of timm's modules, its model with the fewest weights."""
    import timm
    import torch

    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            if name.startswith("test_"):
                continue
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        if sizes:
            print(f'    "{module}": "{min(sizes, key=sizes.get)}",', flush=True)


if __name__ == "__main__":
    sys.exit(main())
