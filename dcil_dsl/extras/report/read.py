"""Read what a run folder says about its run, without torch.

In:   the path of a run folder, finished or not, of this version or an older one.
Out:  RunRecord: its files as plain data; what is missing, in words.
Not:  no tensor is read (weights.py) and nothing is drawn (page.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.report.files import check_line, check_shape
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import Plan, first_fault
from dcil_dsl.words.metrics import METRICS


@dataclass
class RunRecord:
    """One run folder.

    name     the path as it was given, which tells the run from others
    report   report.json; empty where the run has not finished
    lines    metrics.jsonl, a mapping for each epoch
    parent   parent.prune: the recipe that the run's extends, closed; "" where there is none
    command  command.json: where the data are
    start    start.json: {"weights": "random"}, or {"metrics": ...} before training
    profile  sensitivity.json, bench: bench.json; empty where nobody put them there
    """

    path: Path
    name: str
    plan: Plan
    report: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    given: str = ""
    resolved: str = ""
    parent: str = ""
    command: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Any]:
        """The result of report.json, else the latest line, under the same keys."""
        if self.report:
            found: dict[str, Any] = self.report.get("result", {})
            return found
        if not self.lines:
            return {}
        line = self.lines[-1]
        paths: dict[str, dict[str, float]] = {}
        for metric in self.metrics:  # not every epoch is evaluated, with --evaluate-every
            latest = [one[metric] for one in self.lines if metric in one][-1:]
            for path, value in latest[0].items() if latest else ():
                paths.setdefault(path, {})[metric] = value
        return line | {"accuracies": paths, "cost": self.cost_at(line["step"])}

    @property
    def state(self) -> str:
        """finished, cut short (by --max-steps), or unfinished (interrupted, failed, running)."""
        if not self.report:
            return "unfinished"
        return "finished" if self.report.get("complete", True) else "cut short"

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics of the lines, the main one first."""
        found = [
            name
            for line in self.lines
            for name, value in line.items()
            if name in METRICS and isinstance(value, Mapping)
        ]
        for values in self.report.get("result", {}).get("accuracies", {}).values():
            found += [name for name in values if name not in found]
        known = [name for name in METRICS if name in found]
        return known + [name for name in dict.fromkeys(found) if name not in known]

    @property
    def score(self) -> float | None:
        """The main metric on the deployed path."""
        values = self.result.get("accuracies", {}).get(self.plan.deploy, {})
        value = values.get(self.metrics[0]) if self.metrics else None
        return value if isinstance(value, (int, float)) else None

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts runs: by the main metric, the best first; runs without one last."""
        if self.score is None:
            return (1, "", 0.0, self.name)
        known = METRICS.get(self.metrics[0])
        sign = 1.0 if known is not None and known.less_is_better else -1.0
        return (0, self.metrics[0], sign * self.score, self.name)

    def cost_at(self, step: int) -> float:
        """Training cost of the first steps in dense runs of this run's length."""
        if not self.plan.num_steps:
            return 0.0
        done = self.plan.model_copy(update={"num_steps": step})
        return training_cost(done) * step / self.plan.num_steps

    @property
    def missing(self) -> list[str]:
        """The files that would say more, and that the folder lacks."""
        parts = {
            "report.json (the run has not finished)": self.report,
            "metrics.jsonl": self.lines,
            "recipe.prune": self.given,
            "resolved.prune": self.resolved,
        }
        return [name for name, found in parts.items() if not found]


def read_run(path: str | Path) -> RunRecord:
    """The record of a run folder. InputError where it is not one, or a file cannot be read."""
    folder = Path(path)
    if not (folder / "plan.json").is_file():
        raise InputError(
            f"{path} is not a run folder: it has no plan.json",
            help="name the folder that `dcil compile --train` made; `dcil runs` lists them",
        )
    try:
        plan = Plan.from_json(_text(folder / "plan.json"))
    except ValidationError as error:
        raise InputError(
            f"{folder / 'plan.json'} is not a plan that this version reads",
            help=first_fault(error),
        ) from None
    return RunRecord(
        path=folder,
        name=str(path).rstrip("/") or "/",
        plan=plan,
        report=_object(folder / "report.json"),
        lines=_lines(folder / "metrics.jsonl"),
        given=_text(folder / "recipe.prune"),
        resolved=_text(folder / "resolved.prune"),
        parent=_text(folder / "parent.prune"),
        command=_object(folder / "command.json"),
        start=_object(folder / "start.json"),
        profile=_object(folder / "sensitivity.json"),
        bench=_object(folder / "bench.json"),
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders in a folder and below, and the folder itself if it is one."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", help="runs are in `runs` unless --out")
    for file in sorted(folder.rglob("plan.json")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            yield file.parent


def _text(file: Path) -> str:
    if not file.exists():
        return ""
    if not file.is_file():
        raise InputError(f"cannot read {file}: it is not a file")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"cannot read {file}: {reason}") from None


def _object(file: Path) -> dict[str, Any]:
    text = _text(file)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"cannot read {file}: not a JSON object")
    check_shape(file, found)
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    """The line of each epoch. A last line torn by a kill counts as not written."""
    texts, read = _text(file).splitlines(), []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            if number == len(texts):
                break
            line = None
        check_line(f"{file}:{number}", line)
        read.append(line)
    return read
