"""What becomes of the output never decides the status of a run, and nothing is a traceback."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_job import NET, RECIPE

ROOT = Path(__file__).parent.parent
JOB = "compile tiny.prune --model net.py:Net --train synthetic --device cpu --max-steps 2 --out run"
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.fixture
def folder(tmp_path):
    title = RECIPE.replace('"two layers"', '"zw\u00f6lf"')
    (tmp_path / "tiny.prune").write_text(title, encoding="utf-8")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def shell(folder, line, **environment):
    """Run a line of sh in which `dcil` is this program; (its status, what it wrote on stderr)."""
    alias = f'dcil() {{ "{sys.executable}" -m dcil_dsl "$@"; }}\n'
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        ["sh", "-c", alias + line],
        cwd=folder,
        env=os.environ | more,
        capture_output=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    "streams",
    [
        ">&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        ">/dev/full",
        ">/dev/full 2>/dev/full",
    ],
)
def test_a_run_that_trained_ends_with_0_whatever_its_output_goes_to(folder, streams):
    assert shell(folder, f"dcil {JOB} {streams}")[0] == 0
    assert (folder / "run" / "report.json").is_file()
    assert shell(folder, "dcil verify run")[0] == 0


@pytest.mark.parametrize("buffering", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONUNBUFFERED": ""}])
def test_a_reader_that_has_seen_enough_does_not_change_the_status(folder, buffering):
    for line in (JOB, "plan tiny.prune --model net.py:Net", "explain E301", "check missing.prune"):
        kept = f"{{ dcil {line} 2>&1; echo $? > status; }} | head -n 1"
        assert shell(folder, kept, **buffering)[0] == 0
        wanted = "2" if "missing" in line else "0"
        assert (folder / "status").read_text().strip() == wanted
    assert (folder / "run" / "report.json").is_file()


def test_letters_that_the_locale_lacks_are_shown_as_escapes(folder):
    status, _ = shell(folder, f"dcil {JOB} > out", **ASCII)
    assert status == 0 and b"zw\\xf6lf" in (folder / "out").read_bytes()


def test_a_name_of_bytes_that_are_no_text_is_shown_as_it_is(folder):
    os.rename(folder / "tiny.prune", os.fsencode(folder) + b"/t\xe9.prune")
    assert shell(folder, "dcil check t*.prune > out")[0] == 0
    assert (folder / "out").read_bytes() == b"t\xe9.prune: sound\n"


def test_a_verb_whose_work_is_its_text_says_that_the_disk_is_full(folder):
    own = "--model net.py:Net"
    verbs = ["check tiny.prune", f"check tiny.prune {own}", "check tiny.prune --output json"]
    verbs += [
        f"plan tiny.prune {own}",
        f"plan tiny.prune {own} --json",
        f"compile tiny.prune {own}",
    ]
    for verb in (*verbs, "explain E301", "recipes"):
        status, err = shell(folder, f"dcil {verb} > /dev/full")
        assert status == 2 and err.endswith("cannot write the output: No space left on device\n")
        assert shell(folder, f"dcil {verb} >&-")[0] == 0


def test_a_verb_whose_work_is_its_status_or_a_file_keeps_it(folder):
    for streams in (">&-", ">/dev/full", ">/dev/full 2>&1", ">&- 2>&-"):
        assert shell(folder, f"dcil fmt --check tiny.prune missing.prune {streams}")[0] == 2
        assert shell(folder, f"dcil nothing {streams}")[0] == 2


def test_a_folder_that_was_deleted_while_one_stands_in_it_is_reported(folder):
    line = f'mkdir gone; cd gone; rmdir ../gone; dcil verify "{folder}"'
    assert shell(folder, line) == (
        2,
        "error: the working directory no longer exists\n  start in another one\n",
    )


def test_a_terminal_that_goes_away_leaves_a_checkpoint_and_status_130(folder):
    """A process group of its own on a terminal, whose other end is closed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-m",
                "dcil_dsl",
                *JOB.split(),
                "--max-steps",
                "100000",
                "--set",
                "train.epochs=9999ep",
            ],
        )
    shown = b""
    while not (folder / "run" / "checkpoint" / "last.safetensors").exists():
        shown += os.read(terminal, 4096)  # fails where the process has ended
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130, shown
    assert not (folder / "run" / "report.json").exists()


def test_a_number_that_is_printed_and_kept_nowhere_else_is_not_lost_in_silence(folder):
    assert shell(folder, f"dcil {JOB}")[0] == 0
    own = "--model net.py:Net"
    lost = "the output: No space left on device\n"
    status, err = shell(folder, f"dcil eval run {own} > /dev/full")
    assert status == 2 and err.endswith(f"error: cannot write {lost}") and err.count(lost) == 1
    status, err = shell(folder, f"dcil {JOB.removesuffix('run')}other > /dev/full")
    assert status == 0 and err.endswith(f"\nwarning: cannot write {lost}")
    for line in ("verify run", f"export run --to pth {own}"):
        status, err = shell(folder, f"dcil {line} > /dev/full")
        assert status == 0 and err.endswith(f"warning: cannot write {lost}")
        assert shell(folder, f"dcil {line} >&-") == (0, err[: err.index("warning: cannot")])


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["two", "", "-1"])
def test_a_variable_of_the_launcher_that_is_no_number_is_reported(folder, name, value):
    status, err = shell(folder, "dcil check missing.prune", **{name: value})
    assert status == 2 and err.startswith(f"error: {name} is `{value}` in the environment")
