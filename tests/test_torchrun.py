"""The main job on two processes by torchrun, in parts, one of which is killed and started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.tiny_job import NET, RECIPE

from dcil_dsl.jobs.inspect import verify_artefact

ROOT = Path(__file__).parent.parent
KILLED = """
import os, pathlib, signal, threading, time

def die():
    while not pathlib.Path(os.environ["DIES_AFTER"]).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=die, daemon=True).start()
"""
LATE = """
import atexit, pathlib, os
import torch
import torch.distributed as dist

def leave_threads_at_work():
    for _ in range(3000):
        dist.all_reduce(torch.ones(3), async_op=True)

dist.destroy_process_group = leave_threads_at_work
atexit.register(lambda: pathlib.Path("ended" + os.environ["RANK"]).touch())
"""


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        *arguments,
        "-m",
        "dcil_dsl",
        "compile",
        "tiny.prune",
        "--model",
        "net.py:Net",
        "--train",
        "synthetic",
        "--device",
        "cpu",
        "--out",
        "run",
        "--shard",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DIES_AFTER": str(folder / "run" / "checkpoint" / "parts-000000008"),
    }
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )


def test_a_rank_killed_in_the_middle_is_started_again_and_the_job_resumes_alone(tmp_path):
    recipe = RECIPE.replace("epochs    = 2ep", "epochs    = 4ep\n  sync_norms = true")
    (tmp_path / "tiny.prune").write_text(recipe)
    (tmp_path / "net.py").write_text(NET + KILLED)
    done = torchrun(tmp_path, "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["complete"] and report["result"]["step"] == 32
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert "resumed at step" in done.stderr
    verdicts = verify_artefact(tmp_path / "run", warn=print, note=print)
    assert [file.name for file, _ in verdicts] == ["sparse.safetensors", "parts-000000032"]
    assert all(verdict.holds for _, verdict in verdicts)
    assert done.stdout.count("sparsity >= 89%") == 1  # the first rank alone tells


def test_a_run_that_was_there_before_is_not_continued_by_a_restart(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    assert torchrun(tmp_path).returncode == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    done = torchrun(tmp_path, "--max-restarts", "1")
    assert done.returncode == 1
    assert done.stderr.count("run already holds a run") == 2 and "resumed" not in done.stderr
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_threads_that_are_at_work_when_a_rank_ends_do_not_abort_it(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET + LATE)
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ended0").exists() and (tmp_path / "ended1").exists()
