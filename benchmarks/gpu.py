"""Everything worth knowing on a machine with one GPU, in one command and one JSON.

    python benchmarks/gpu.py [--fashion DIR] [--minutes 8] [--only tests,quickstart]

Each part is a process of its own with a limit of its own, so that what hangs, runs out of memory
or breaks CUDA ends alone: its error is recorded, and the rest goes on. A part for which too little
of the whole time is left is skipped, and says so. Exit status 1 where a part failed; a part that
was skipped is no failure. `--device cpu --tiny` runs the same parts in small, to try the plumbing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from environment import describe_machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEAST = 15  # seconds; with less than this left no part is begun
GRACE = 8  # seconds before its limit in which a part is asked to end, as by Ctrl-C


@dataclass(frozen=True)
class Part:
    """seconds: the most it may take. output: the file it writes, JSON or JUnit's XML.

    own_limit: the option that passes the limit to the program, which ends with its results so far.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    output: str
    own_limit: str | None = None


def parts_of(asked: argparse.Namespace) -> list[Part]:
    """In the order of what is missed most if the time ends early."""
    python = (sys.executable, "-u")
    device = asked.device

    def costs(name: str, seconds: float, network: str, *options: str) -> Part:
        command = (*python, str(HERE / "step_cost.py"), "--device", device, "--networks", network)
        small = ("--quick",) if asked.tiny else ()
        return Part(name, command + options + small, seconds, "json", "--seconds")

    def training(name: str, seconds: float, recipe: str, model: str, *options: str) -> Part:
        command = (*python, str(HERE / "train_run.py"), str(ROOT / "recipes" / recipe))
        more = ("--model", model, "--device", device)
        return Part(name, command + more + options, seconds, "json")

    def other(name: str, seconds: float, program: str, *options: str) -> Part:
        small = ("--tiny",) if asked.tiny else ()
        command = (*python, str(HERE / program), "--device", device, *options, *small)
        return Part(name, command, seconds, "json")

    tests = ("-m", "pytest", "-m", "gpu", "-v", "--tb=long", "--durations=10", "tests/gpu", "-k")
    slow = "compiled or cuda_graphs"  # what Inductor takes a minute for
    graphs = "graphs" if device == "cuda" else "compiled"  # a CPU has none
    parts = [
        Part("tests", (*python, *tests, f"not ({slow})"), 120, "xml"),
        costs(
            "resnet50 bf16 eager", 90, "resnet50", "--precision", "bf16", "--also", "checkpointed"
        ),
        costs(
            "resnet50 bf16 compiled", 210, "resnet50", "--precision", "bf16", "--modes", "compiled"
        ),
        training("quickstart", 90, "quickstart.prune", "torchvision:resnet18", "--data", "digits"),
        other(
            "pattern on cores",
            60,
            "kept_alone.py",
            "--pattern",
            "--precision",
            "bf16",
            "--steps",
            "5",
        ),
        Part("tests compiled", (*python, *tests, slow), 150, "xml"),
        costs("resnet32 batch 128", 120, "resnet32", "--precision", "bf16", "--compile"),
        costs(
            "resnet32 batch 128 graphs", 120, "resnet32", "--precision", "bf16", "--modes", graphs
        ),
        other("like the authors", 200, "like_the_authors.py"),
    ]
    if asked.fashion:
        limit = asked.fashion_seconds
        parts.append(
            training(
                "fashion",
                limit + 30,
                "resnet20_fashion_dcil97.prune",
                "dcil:resnet20",
                "--data",
                "fashion-mnist",
                "--dir",
                str(asked.fashion),
                "--precision",
                "bf16",
                "--seconds",
                str(limit),
            )
        )
    parts += [
        costs("resnet32 batch 1024", 40, "resnet32", "--precision", "bf16", "--batch", "1024"),
        costs("resnet18 bf16 eager", 40, "resnet18", "--precision", "bf16"),
        costs("resnet50 fp32 and tf32", 60, "resnet50", "--tf32", "off,on", "--batch", "64"),
        costs(
            "resnet18 bf16 compiled", 120, "resnet18", "--precision", "bf16", "--modes", "compiled"
        ),
        costs(
            "resnet32 batch 1024 compiled",
            100,
            "resnet32",
            "--precision",
            "bf16",
            "--batch",
            "1024",
            "--modes",
            "compiled",
        ),
        other(
            "kept alone",
            90,
            "kept_alone.py",
            "--networks",
            "resnet50",
            "--precision",
            "bf16",
            "--steps",
            "5",
        ),
        other("data path", 240, "data_path.py", "--seconds", "160"),
    ]
    return parts


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    began = time.perf_counter()
    deadline = began + 60 * asked.minutes
    report = {"machine": describe_machine(asked.device), "tiny": asked.tiny, "parts": {}}
    for part in parts_of(asked):
        if asked.only and part.name not in asked.only:
            continue
        left = deadline - time.perf_counter()
        if left < LEAST:
            entry = {"status": "skipped", "why": f"{left:.0f} of {60 * asked.minutes:.0f} s left"}
        else:
            print(f"== {part.name}: at most {min(part.seconds, left):.0f} s", flush=True)
            entry = run_part(part, min(part.seconds, left), asked)
        report["parts"][part.name] = entry
        print(f"== {part.name}: {entry['status']}, {entry.get('seconds', 0):.0f} s", flush=True)
        report["seconds"] = time.perf_counter() - began
        write(asked.out, report)  # after each, so that a cut leaves what there is
    failed = [name for name, entry in report["parts"].items() if entry["status"] == "failed"]
    skipped = [name for name, entry in report["parts"].items() if entry["status"] == "skipped"]
    print(f"{report['seconds']:.0f} s; {asked.out}")
    print(f"failed: {', '.join(failed) or 'none'}; skipped: {', '.join(skipped) or 'none'}")
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="default: results/gpu-<device>-<date>.json here")
    parser.add_argument("--minutes", type=float, default=7.8, help="of the whole")
    parser.add_argument("--fashion", type=Path, metavar="DIR", help="Fashion-MNIST's four files")
    parser.add_argument("--fashion-seconds", type=float, default=90)
    parser.add_argument("--only", help="names of parts, separated by commas; --list names them")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small batches; times mean nothing")
    asked = parser.parse_args(arguments)
    if asked.fashion:
        asked.fashion = asked.fashion.resolve()
        if not asked.fashion.is_dir():
            parser.error(f"--fashion {asked.fashion}: there is no such folder")
    names = [part.name for part in parts_of(asked)]
    if asked.list:
        print("\n".join(names))
        parser.exit()
    if asked.only:
        asked.only = [name.strip() for name in asked.only.split(",")]
        unknown = [name for name in asked.only if name not in names]
        if unknown:
            parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(names)}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu --tiny tries the plumbing")
    if asked.out is None:
        name = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
        word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        asked.out = HERE / "results" / f"gpu-{word}-{day}.json"
    return asked


def run_part(part: Part, limit: float, asked: argparse.Namespace) -> dict:
    """Run it, and read what it wrote, whether or not it came to its end."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / f"output.{part.output}"
        flag = "--json" if part.output == "json" else "--junitxml"
        command = [*part.command, flag, str(output)]
        if part.own_limit:  # 70 %: what it is doing at that moment it still ends
            command += [part.own_limit, str(round(0.7 * limit))]
        began = time.perf_counter()
        status, text = run_limited(command, limit, environment(asked))
        seconds = time.perf_counter() - began
        entry = {"status": "done", "seconds": seconds, "exit": status}
        if output.exists():
            read = read_json if part.output == "json" else read_tests
            try:
                entry["result"] = read(output)
            except (ValueError, ElementTree.ParseError) as error:
                entry["error"] = f"{output.name} cannot be read: {error}"
        if status != 0 or "result" not in entry:
            entry["status"] = "failed"
            reason = f"stopped after {limit:.0f} s" if status is None else f"exit status {status}"
            entry.setdefault("error", reason)
            entry["output"] = text[-12_000:]
            print(text[-3_000:], flush=True)
        else:
            print(text[-2_500:], flush=True)
    return entry


def run_limited(command: list[str], limit: float, env: dict) -> tuple[int | None, str]:
    """Exit status and all output; status None where it was ended, with the children it started.

    It is asked first: pytest then writes what it has, and a run a checkpoint.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=env,
            start_new_session=True,
        )
        try:
            status = process.wait(max(limit - GRACE, limit / 2))
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            end_group(process)
        log.seek(0)
        return status, log.read().decode(errors="replace")


def end_group(process: subprocess.Popen) -> None:
    """The process and the workers it may have left behind: its own session, and no other's."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def environment(asked: argparse.Namespace) -> dict:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if asked.device == "cpu":
        more["DCIL_TEST_DEVICE"] = "cpu"
    return {**os.environ, **more}


def read_json(path: Path):
    return json.loads(path.read_text())


def read_tests(path: Path) -> dict:
    """Counts, and for each test its outcome, seconds, and traceback where it failed."""
    tests = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error", "skipped")]
        entry = {"outcome": wrong[0].tag if wrong else "passed", "seconds": float(case.get("time"))}
        if wrong:
            entry["text"] = (wrong[0].text or wrong[0].get("message") or "")[-4000:]
        tests[f"{case.get('classname')}::{case.get('name')}"] = entry
    passed = sum(entry["outcome"] == "passed" for entry in tests.values())
    return {"passed": passed, "of": len(tests), "tests": tests}


def write(path: Path, report: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
