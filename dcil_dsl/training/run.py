"""The run folder: the files that a run leaves, and that a later one may resume from.

In:   a Plan and the recipe's texts, or a folder made before; the options of the command line.
Out:  RunFolder, whose files are named here and nowhere else; every write is atomic. command.json:
      where the data and the first weights are, which the recipe does not say.
Not:  no tensors; checkpoint.py fills checkpoint/, the command line the report.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcil_dsl.diagnostics.counting import count, ranges
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.trace import comparable
from dcil_dsl.plan.plan import Plan, first_fault
from dcil_dsl.training.checkpoint_files import newest_of, previous_of
from dcil_dsl.training.differences import (
    data_differences,
    listed,
    plan_differences,
    text_differences,
)
from dcil_dsl.training.files import cannot_write, read_text, write_text
from dcil_dsl.training.options import RunOptions
from dcil_dsl.training.process import draft_in

# Nothing takes the place of a mount point, or of a link to a folder.
IN_PLACE = (errno.EBUSY, errno.EXDEV, errno.ENOTDIR)
COMMAND = "command.json"
HOW_ANYWAY = "to resume from its checkpoint with the present model and data: --resume-anyway"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, whether they exist yet or not."""

    path: Path

    recipe = property(lambda self: self.path / "recipe.prune")
    resolved = property(lambda self: self.path / "resolved.prune")
    parent = property(lambda self: self.path / "parent.prune")
    plan = property(lambda self: self.path / "plan.json")
    model = property(lambda self: self.path / "model.txt")
    data = property(lambda self: self.path / "data.json")
    bad_images = property(lambda self: self.path / "bad_images.txt")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    checkpoint = property(lambda self: self.path / "checkpoint" / "last.safetensors")
    has_checkpoint = property(lambda self: newest_of(self.checkpoint) is not None)
    had_checkpoint = property(
        lambda self: (
            self.has_checkpoint
            or previous_of(self.checkpoint).exists()
            or self.weights.exists()
            or len(self.read_metrics()) > 1
        )  # one is written before the first checkpoint
    )
    weights = property(lambda self: self.path / "sparse.safetensors")
    report = property(lambda self: self.path / "report.json")
    start = property(lambda self: self.path / "start.json")
    events = property(lambda self: self.path / "tensorboard")

    def read_plan(self) -> Plan:
        """The Plan that the run was started with."""
        try:
            return Plan.from_json(read_text(self.plan))
        except ValidationError as error:
            raise InputError(
                f"{self.plan} is not a plan that this version reads",
                help=f"{count(error.error_count(), 'fault')}, the first: {first_fault(error)}",
            ) from None

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl and flush it to the disk."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.metrics, error) from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far. A last line cut off by a kill is ignored."""
        lines = read_text(self.metrics).splitlines() if self.metrics.exists() else []
        read = []
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines):
                    break
                found = None
            if not isinstance(found, dict) or not isinstance(found.get("epoch"), int):
                raise InputError(f"{self.metrics}:{number}: not the line of an epoch")
            read.append(found)
        return read

    def cut_metrics(self, num_epochs: int) -> None:
        """Drop the lines of epochs after the first `num_epochs`, which are trained again."""
        kept = [line for line in self.read_metrics() if line["epoch"] <= num_epochs]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.metrics, text)

    def read_bad_images(self) -> list[str]:
        """The lines of BadImages (data/reading.py): each image once."""
        return list(dict.fromkeys(_stored(self.bad_images).splitlines()))

    def read_start(self) -> dict[str, Any] | None:
        """What the run started from (start.py); None where that was not recorded."""
        if not self.start.exists():
            return None
        try:
            return dict(json.loads(read_text(self.start)))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self.start} cannot be read: {error}") from None

    def lost(self, num_epochs: int) -> list[str]:
        """What is missing of the first `num_epochs`, which a resumed run does not train again."""
        there = {line["epoch"] for line in self.read_metrics()}
        missing = [number for number in range(1, num_epochs + 1) if number not in there]
        found = []
        if missing:
            which = f"epoch{'s' if missing[1:] else ''} {ranges(missing)}"
            found.append(f"{self.metrics} has no line of {which}: its curves have a gap")
        if not self.start.exists():
            found.append(f"{self.start} is missing: what the run started from is unknown")
        return found

    def write_report(self, report: Mapping[str, Any]) -> None:
        write_text(self.report, json.dumps(report, indent=2) + "\n")


def create_run(
    plan: Plan,
    given: str,
    resolved: str,
    out: Path | str | None = None,
    model: str = "",
    data: Mapping[str, str] = {},
    extra_files: Mapping[str, str] = {},
) -> RunFolder:
    """A new folder with the inputs of the run.

    given, resolved  the recipe's two texts
    model, data      descriptions of the model (model/trace.py) and the data (data/contents.py)
    extra_files      more files that the folder has from the start: contents by name

    out None: runs/<recipe>-<date>-<n> with the first free n. The folder appears whole or not at
    all. InputError where `out` exists and is not an empty folder, or cannot be written.
    """
    refuse_in_the_way(out)
    parent = Path("runs") if out is None else Path(out).parent
    name = f"{plan.recipe.name}-{date.today().isoformat()}" if out is None else Path(out).name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with draft_in(parent, name) as draft:
            run = RunFolder(draft)
            run.checkpoint.parent.mkdir()
            _write_start(run, plan, given, resolved, model, data)
            for file, text in extra_files.items():
                write_text(draft / file, text)
            return RunFolder(_rename(draft, None if out is None else Path(out), parent / name))
    except OSError as error:
        raise cannot_write(parent if out is None else Path(out), error) from None


def refuse_out(out: Path | str | None) -> None:
    """InputError where create_run would refuse `out`; nothing is left behind."""
    refuse_in_the_way(out)
    parent = Path("runs") if out is None else Path(out).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".dcil-", dir=parent))
    except OSError as error:
        raise cannot_write(Path("runs" if out is None else out), error) from None


def refuse_in_the_way(out: Path | str | None) -> None:
    """InputError where `out` exists and is not an empty folder."""
    if out is not None and (reason := _in_the_way(Path(out))):
        raise InputError(
            f"{out} {reason}",
            help="continue it with --resume, or name another folder with --out"
            if (Path(out) / "plan.json").exists()
            else "name another folder with --out",
        )


def _write_start(
    run: RunFolder, plan: Plan, given: str, resolved: str, model: str, data: Mapping[str, str]
) -> None:
    for path, text in [
        (run.recipe, given),
        (run.resolved, resolved),
        (run.model, model),
        (run.data, json.dumps(data, indent=2) + "\n"),
        (run.plan, plan.to_json() + "\n"),
    ]:
        write_text(path, text)


def open_run(path: Path | str) -> RunFolder:
    """A folder that create_run made. InputError where there is none."""
    run = RunFolder(Path(path))
    if run.plan.is_file():
        return run
    what = "is a file, not a run folder" if run.path.is_file() else "does not exist"
    if run.path.is_dir():
        what = "is not a run folder (it has no plan.json)"
    around = [parent for parent in run.path.parents if RunFolder(parent).plan.is_file()]
    near = f"did you mean {around[0]}?" if around else None
    raise InputError(f"{path} {what}", near or "give the folder that training named, runs/...")


def resume_run(
    path: Path | str,
    plan: Plan,
    given: str = "",
    resolved: str = "",
    model: str = "",
    data: Mapping[str, str] = {},
    anyway: bool = False,
) -> RunFolder:
    """A folder to continue with the inputs that it was started with, as in create_run.

    InputError lists the differences: lines of the recipe and of the model, parts of the data,
    settings of the plan. An empty text is not compared. anyway: the folder takes the new inputs,
    and keeps the previous plan as plan-until-<time>.json.
    """
    run = open_run(path)
    differences = _differences(run, plan, resolved, model, data)
    if differences and not anyway:
        lines = [line for found in differences.values() for line in listed(found)]
        raise InputError(
            f"{path} was started with {' and '.join(differences)} and cannot be resumed",
            help="\n".join([*lines, HOW_ANYWAY]),
        )
    if differences:
        kept = run.plan.with_name(f"plan-until-{datetime.now():%Y-%m-%d-%H%M%S}.json")
        write_text(kept, read_text(run.plan))
        _write_start(run, plan, given, resolved, model, data)
    return run


def check_model(run: RunFolder, model: str) -> None:
    """InputError where the text of a model (model/trace.py) is not that of the run's model.

    A run of an earlier version has no text to compare.
    """
    lines = _model_differences(run, model)
    if lines:
        raise InputError(
            f"{run.path} was started with another model",
            help="\n".join([*listed(lines), "to use the present model: --anyway"]),
        )


def _model_differences(run: RunFolder, model: str) -> list[str]:
    return text_differences(comparable(_stored(run.model)) or model, model)


def _differences(
    run: RunFolder, plan: Plan, resolved: str, model: str, data: Mapping[str, str]
) -> dict[str, list[str]]:
    """For each of recipe, model, data and plan that differs, lines that say how.

    With equal plans, recipes may differ in comments and in `expect`.
    """
    plans = plan_differences(run.read_plan(), plan)
    then = _parts_of_data(run.data)
    texts = {
        "another recipe": text_differences(read_text(run.resolved), resolved)
        if plans and resolved
        else [],
        "another model": _model_differences(run, model) if model else [],
        "other data": data_differences(then or data, data),
        "another plan": plans,
    }
    return {name: lines for name, lines in texts.items() if lines}


def _parts_of_data(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(_stored(path) or "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _rename(draft: Path, out: Path | None, stem: Path) -> Path:
    if out is not None:
        try:
            if not (out.is_dir() and out.samefile(os.curdir)):  # which is the caller's, too
                return draft.rename(out)  # takes the place of an empty folder
        except OSError as error:
            if error.errno not in IN_PLACE or not out.is_dir():
                raise
        for file in sorted(draft.iterdir(), key=lambda file: file.name == "plan.json"):
            shutil.move(file, out / file.name)  # last what makes a run of it
        return out
    n = 1
    while True:
        path = stem.with_name(f"{stem.name}-{n}")
        try:
            path.mkdir()  # claims the name, for whoever starts a run at the same moment
            return draft.rename(path)
        except FileExistsError:
            n += 1


def _in_the_way(out: Path) -> str | None:
    try:
        if not out.exists():
            return None
    except OSError as error:
        raise cannot_write(out, error) from None
    if not out.is_dir():
        return "is a file"
    if (out / "plan.json").exists():
        return "already holds a run"
    return "is not empty" if any(out.iterdir()) else None


def _stored(path: Path) -> str:
    """The text, empty where a run of an earlier version has none."""
    return read_text(path) if path.exists() else ""


def command_text(plan: Plan, options: RunOptions, threads: int | None = None) -> str:
    """The model, the data, and the options whose Flag says `recorded`.

    threads  of torch on a CPU, which decide the order of its sums; None on other devices
    """
    command = {"model": plan.model.name, "data": plan.data.name, **options.recorded()}
    command["threads"] = None if threads is None else str(threads)
    return json.dumps(command, indent=2) + "\n"


def read_command(folder: RunFolder) -> dict[str, str | None]:
    """The contents of command.json; without that file, the plan's."""
    file = folder.path / COMMAND
    known = {"data": folder.read_plan().data.name, "directory": None}
    if not file.exists():
        return known
    try:
        told = known | dict(json.loads(read_text(file)))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    for name, value in told.items():
        if not isinstance(value, str | None):
            raise InputError(f"{file} cannot be read: `{name}` is not a string")
    return told


def full_path(weights: str) -> str:
    """The absolute path of a file; a library's name for weights unchanged."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() else weights


def weights_to_resume(folder: RunFolder, given: str | None) -> str | None:
    """The weights that a continued run loads before its checkpoint: those it was started with.

    A file is needed only as long as there is no checkpoint. InputError where `given` is another.
    """
    first = read_command(folder).get("weights")
    if given is not None:
        if first not in (given, full_path(given)):
            raise InputError(
                f"{folder.path} was started from {first or 'fresh weights'}, not from {given}",
                help="leave --weights out to continue it",
            )
    is_file = first is not None and Path(first).is_absolute()
    return None if is_file and folder.has_checkpoint else first
