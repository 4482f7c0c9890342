"""The run folder: what a training leaves behind, and what a later one may continue.

In:   a Plan and the recipe's texts, or a folder made before.
Out:  RunFolder, whose files are named here and nowhere else; every write is atomic.
Not:  nothing here knows a tensor; checkpoint.py fills checkpoint/, the command line the report.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.plan.plan import Plan

MAX_DIFFERENCES = 5  # shown of two plans; the count of the rest is said


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, whether they exist yet or not."""

    path: Path

    recipe = property(lambda self: self.path / "recipe.prune")
    resolved = property(lambda self: self.path / "resolved.prune")
    plan = property(lambda self: self.path / "plan.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    checkpoint = property(lambda self: self.path / "checkpoint" / "last.safetensors")
    weights = property(lambda self: self.path / "sparse.safetensors")
    report = property(lambda self: self.path / "report.json")
    events = property(lambda self: self.path / "tensorboard")

    def read_plan(self) -> Plan:
        """The Plan that the run was started with."""
        try:
            return Plan.from_json(_read(self.plan))
        except ValidationError as error:
            raise InputError(
                f"{self.plan} is not a plan that this version reads",
                help=f"{error.error_count()} fields differ; the first is "
                f"`{'.'.join(map(str, error.errors()[0]['loc']))}`",
            ) from None

    def append_metrics(self, line: dict) -> None:
        """Add one line to metrics.jsonl and see it on the disk."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.metrics, error) from None

    def read_metrics(self) -> list[dict]:
        """The lines so far. A last line torn by a kill counts as not written."""
        lines = _read(self.metrics).splitlines() if self.metrics.exists() else []
        read = []
        for number, line in enumerate(lines, start=1):
            try:
                read.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise InputError(f"{self.metrics}:{number}: not a line of JSON") from None
        return read

    def cut_metrics(self, num_epochs: int) -> None:
        """Drop the lines of epochs after the first `num_epochs`, which will be trained again."""
        kept = [line for line in self.read_metrics() if line["epoch"] <= num_epochs]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.metrics, text)

    def write_report(self, report: dict) -> None:
        write_text(self.report, json.dumps(report, indent=2) + "\n")


def create_run(plan: Plan, given: str, resolved: str, out: Path | str | None = None) -> RunFolder:
    """A new folder with the recipe's two texts and the plan in it.

    out None: runs/<recipe>-<date>-<n> with the first free n. The folder appears whole or not at
    all. InputError where `out` exists and is not an empty folder, or cannot be written.
    """
    if out is not None and (reason := _in_the_way(Path(out))):
        raise InputError(
            f"{out} {reason}",
            help="continue it with --resume, or name another folder with --out"
            if (Path(out) / "plan.json").exists()
            else "name another folder with --out",
        )
    parent = Path("runs") if out is None else Path(out).parent
    name = f"{plan.recipe.name}-{date.today().isoformat()}" if out is None else Path(out).name
    draft = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
        draft.chmod(0o777 & ~_umask())  # mkdtemp makes it for its owner alone
        run = RunFolder(draft)
        run.checkpoint.parent.mkdir()
        for path, text in [
            (run.recipe, given), (run.resolved, resolved), (run.plan, plan.to_json() + "\n"),
        ]:  # fmt: skip
            write_text(path, text)
        return RunFolder(_rename(draft, Path(out) if out is not None else None, parent / name))
    except OSError as error:
        raise cannot_write(Path(out) if out is not None else parent, error) from None
    finally:
        if draft is not None and draft.exists():
            shutil.rmtree(draft, ignore_errors=True)


def open_run(path: Path | str) -> RunFolder:
    """A folder that create_run made. InputError where there is none."""
    run = RunFolder(Path(path))
    if not run.plan.is_file():
        is_there = run.path.is_dir()
        what = "is not a run folder (it has no plan.json)" if is_there else "does not exist"
        raise InputError(f"{path} {what}", help="give the folder that training named, runs/...")
    return run


def resume_run(path: Path | str, plan: Plan) -> RunFolder:
    """A folder to continue under the same plan. InputError names the fields that differ."""
    run = open_run(path)
    differences = plan_differences(run.read_plan(), plan)
    if differences:
        shown = differences[:MAX_DIFFERENCES]
        if more := len(differences) - len(shown):
            shown.append(f"and {more} more")
        raise InputError(
            f"{path} was started with another plan and cannot be resumed with this one",
            help="\n".join(shown),
        )
    return run


@contextmanager
def hold_run(run: RunFolder) -> Iterator[None]:
    """Keep every other process from training in this folder. InputError where one does already.

    The lock is on the folder itself and ends with the process, however that ends: no file is
    left behind. A file system without locks holds nothing.
    """
    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process is training in {run.path}", help="wait for it, or end it"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """Where two plans would train differently: "train.rate.warmup: 5 in the run, 0 now".

    The recipe's name, title and place in its file, and what it expects of the result, may change.
    """
    found: list[str] = []
    _compare(_science(old), _science(new), "", found)
    return found


def fingerprint(plan: Plan) -> str:
    """A sha256 that two plans share exactly where plan_differences finds nothing."""
    return sha256(json.dumps(_science(plan), sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it in its place.

    Whoever reads sees the old file or the new one, also after a power cut. InputError where it
    cannot be written; the old file is still there then.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)  # of a process that was killed
        draft.touch()
        mode = draft.stat().st_mode  # safetensors would leave the file to its owner alone
        write(draft)
        draft.chmod(mode)
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """write_atomically for text."""
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def cannot_write(path: Path, error: Exception) -> InputError:
    """The error for a full disk, a missing permission and the like."""
    reason = getattr(error, "strerror", None) or str(error)
    help = "free some space and continue with --resume" if _is_full(error) else None
    return InputError(f"cannot write {path}: {reason}", help=help)


def _rename(draft: Path, out: Path | None, stem: Path) -> Path:
    if out is not None:
        return draft.rename(out)  # takes the place of an empty folder
    n = 1
    while True:
        path = stem.with_name(f"{stem.name}-{n}")
        try:
            path.mkdir()  # claims the name, for whoever starts a run at the same moment
            return draft.rename(path)
        except FileExistsError:
            n += 1


def _in_the_way(out: Path) -> str | None:
    if not out.exists():
        return None
    if not out.is_dir():
        return "is a file"
    if (out / "plan.json").exists():
        return "already holds a run"
    return "is not empty" if any(out.iterdir()) else None


def _science(plan: Plan) -> dict:
    values = plan.model_dump(mode="json", exclude={"recipe", "expect"})
    for part in [*values["layers"], *values["groups"]]:
        del part["rule"]
    return values


def _compare(old: object, new: object, name: str, found: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else key
            _compare(old.get(key), new.get(key), inner, found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            _compare(a, b, f"{name}[{i}]", found)
    elif old != new:
        found.append(f"{name}: {_shown(old)} in the run, {_shown(new)} now")


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"{len(value)} entries"
    return json.dumps(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"cannot read {path}: {reason}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
