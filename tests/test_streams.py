"""What becomes of the output never decides the status of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dcil_dsl.training.interrupt import wish_to_stop

ROOT = Path(__file__).parent.parent
DCIL = f"{sys.executable} -m dcil_dsl"
RECIPE = (
    (ROOT / "recipes" / "quickstart.prune")
    .read_text(encoding="utf-8")
    .replace('title = "', 'title = "\u00e9t\u00e9: ')
)
TRAIN = (
    f"{DCIL} compile quick.prune --model dcil:resnet20 --train digits --max-steps 1 --out run "
    "--set 'pruning.schedule=constant()' --device cpu"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "quick.prune").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    given = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=given, capture_output=True, check=False
    )


NARROW = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize("end, variables", [
    (">&-", {}), ("2>&-", {}), (">&- 2>&- <&-", {}), ("> /dev/full", {}), ("2> /dev/full", {}),
    ("| head -c 1; exit ${PIPESTATUS[0]}", {}), ("", NARROW),
], ids=["no stdout", "no stderr", "neither", "full", "stderr full", "head", "ascii"])  # fmt: skip
def test_a_run_that_trained_ends_with_the_status_it_earned(folder, end, variables):
    ended = shell(f"{TRAIN} {end}", folder, **variables)
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stdout + ended.stderr
    assert b"Exception ignored" not in ended.stderr
    assert (folder / "run" / "sparse.safetensors").is_file()
    assert (folder / "run" / "report.json").is_file()


@pytest.mark.parametrize("verb", ["check quick.prune", "check missing.prune", "fmt --check x.prune"])
@pytest.mark.parametrize("end", [">&- 2>&-", "> /dev/full 2>&1"])
def test_verbs_that_judge_keep_their_status(folder, verb, end):
    (folder / "x.prune").write_text("language   1\n")
    told = shell(f"{DCIL} {verb}", folder)
    assert shell(f"{DCIL} {verb} {end}", folder).returncode == told.returncode


@pytest.mark.parametrize("verb", ["explain E301", "plan quick.prune --model dcil:resnet20"])
def test_a_verb_that_is_its_output_says_that_it_was_lost(folder, verb):
    lost = shell(f"{DCIL} {verb} > /dev/full", folder)
    assert (lost.returncode, b"cannot write the output" in lost.stderr) == (2, True)
    assert b"Traceback" not in lost.stderr
    cut = shell(f"{DCIL} {verb} | head -1; exit ${{PIPESTATUS[0]}}", folder)
    assert (cut.returncode, cut.stderr.count(b"Traceback")) == (0, 0)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_goes_away_is_a_wish_to_stop_unless_nohup_hides_it():
    with wish_to_stop() as wish:
        os.kill(os.getpid(), signal.SIGHUP)
        assert wish.is_there
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with wish_to_stop() as wish:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not wish.is_there
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
