"""What differs between two runs: a new one and an old one, or two ranks of one job.

In:   two plans, two texts of a recipe or of a model, two accounts of data; on each rank its plan,
      its options, its model as text, the contents of its data.
Out:  lines for a person, none where the two would train alike; the fingerprint of a plan; an
      InputError on all ranks where one was started otherwise than the first.
Not:  an old run is refused in run.py. Where the data are, the number of workers and the index of a
      rank's device may differ. Nothing is corrected: no rank takes the options of another.

Ranks that train different things still exchange tensors: they train a mixture, wait for each
other, or are aborted by a collective whose sizes do not match.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.plan.plan import Plan, TrainPlan
from dcil_dsl.training.machine import Options

# Settings that an older version did not have, and that fingerprints leave out at their defaults.
# Others that were added later: stored_fingerprint.
ADDED = ("stop", "checkpoint")
MAX_LINES = 5  # shown of each kind; the count of the rest is said


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """Where two plans would train differently: "train.rate.warmup: 5 in the run, 0 now".

    The recipe's name, title and place in its file, and what it expects of the result, may change.
    """
    return value_differences(science_of(old), science_of(new), "in the run", "now")


def value_differences(one: object, other: object, here: str, there: str) -> list[str]:
    """Where two trees of plain data differ, by name: "warmup: 5 in the run, 0 now"."""
    found: list[tuple[str, object, object]] = []
    _compare(one, other, "", found)
    return [f"{name}: {_shown(a)} {here}, {_shown(b)} {there}" for name, a, b in found]


def fingerprint(plan: Plan) -> str:
    """A sha256 that is equal for two plans exactly if plan_differences finds nothing."""
    return _digest(science_of(plan))


def stored_fingerprint(plan: Mapping[str, Any]) -> str:
    """The fingerprint in the checkpoints of a run with this plan.json, whatever version wrote it.

    A later version adds fields, which the file does not have. KeyError, TypeError or
    AttributeError if it is not a plan.
    """
    values = {name: x for name, x in plan.items() if name not in ("recipe", "expect", "facts")}
    values = json.loads(json.dumps(values))  # a copy
    return _digest(_alike(values) if values["format"] == 1 else _science(values))


def text_differences(old: str, new: str) -> list[str]:
    """The removed lines, "- target = 90%", and the added ones, "+ target = 95%"."""
    before, after = ([line.strip() for line in text.splitlines()] for text in (old, new))
    # Two lines of file names stand before the first difference.
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return [f"{line[0]} {line[1:]}" for line in lines if line[0] in "-+" and line[1:]]


def data_differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """For each part of the data that differs (data/contents.py), the old and the new contents."""
    return [
        f"{name}: {old.get(name, 'nothing')} in the run, {new.get(name, 'nothing')} now"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def listed(differences: list[str]) -> list[str]:
    """The first MAX_LINES of them, and how many more there are."""
    more = len(differences) - MAX_LINES
    return differences[:MAX_LINES] + ([f"and {more} more"] if more > 0 else [])


def science_of(plan: Plan) -> dict[str, Any]:
    """The settings that decide the training, as plain data: equal exactly if runs train alike."""
    return _science(plan.model_dump(mode="json", exclude={"recipe", "expect"}))


def _digest(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _science(values: dict[str, Any]) -> dict[str, Any]:
    """The same of a dumped plan of format 2."""
    # Names of what stands next to them: `targets` has what the profile gave, `parameters` those
    # of the layers.
    for group in values["groups"]:
        group["target"].get("settings", {}).pop("profile", None)
    for part in (values, *values["phases"]):  # an older version had no teachers
        if not part.get("teachers", True):
            del part["teachers"]
    for teacher in values.get("teachers", ()):
        del teacher["size"]  # how much is computed, not what
    train = values["train"]
    for word in (train["average"], *train.get("groups", ())):
        (word or {}).get("settings", {}).pop("layers", None)
    for name in ADDED:
        if name in train and train[name] == TrainPlan.model_fields[name].default:
            del train[name]
    return _alike(values)


def _alike(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the settings that may change, in every format."""
    for part in [*values["layers"], *values["groups"]]:
        del part["rule"]
    for layer in values["layers"]:
        del layer["is_plain"]  # of the model, not of the plan: how much is computed, not what
    values["model"]["name"] = _without_folder(values["model"]["name"])
    # By name, so that a layer more does not shift all that follow it.
    values["layers"] = {layer.pop("parameter"): layer for layer in values["layers"]}
    return values


def _without_folder(spec: str | None) -> str | None:
    """ "a/net.py:Net" -> "net.py:Net": the contents of the file are compared as the model's
    text, and folders may move."""
    file, colon, name = (spec or "").rpartition(":")
    return f"{Path(file).name}:{name}" if file.endswith(".py") else spec


def _compare(old: Any, new: Any, name: str, found: list[tuple[str, object, object]]) -> None:
    if _is_word(old) and _is_word(new):
        if old["word"] != new["word"]:
            found.append((name, old["word"], new["word"]))
            return
        old, new = (one | one.get("settings", {}) | {"settings": None} for one in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else key
            _compare(old.get(key), new.get(key), inner, found)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            _compare(a, b, f"{name}[{i}]", found)
    elif old != new:
        found.append((name, old, new))


def _is_word(value: object) -> bool:
    return isinstance(value, dict) and "word" in value


def _shown(value: object) -> str:
    if isinstance(value, list):
        return count(len(value), "entry", "entries")
    if isinstance(value, dict):  # of a layer, against None
        return "there"
    return "none" if value is None else json.dumps(value)


def check_alike(plan: Plan, options: Options, model: str, data: Mapping[str, str]) -> None:
    """InputError on all ranks where one was started otherwise than the first."""
    ranks = options.ranks
    if ranks.count == 1:
        return
    said = {
        "options": options.compared(),
        "plan": science_of(plan),
        "model": model,
        "data": dict(data),
    }
    found = ranks.find_other(json.dumps(said, sort_keys=True))
    if found is None:
        return
    others, first, other = found[0], json.loads(found[1]), json.loads(found[2])
    places = ("on rank 0", f"on rank {others[0]}")
    lines = []
    for part in ("options", "plan", "data"):
        lines += listed(value_differences(first[part], other[part], *places))
    text = text_differences(first["model"], other["model"])
    lines += listed([f"model {line[0]} {line[2:]}" for line in text])
    which = "ranks " + ", ".join(map(str, others)) if others[1:] else f"rank {others[0]}"
    raise InputError(
        f"the processes of this job were not started alike: {which} and rank 0 differ",
        help="\n".join([*lines, "give every process the same command"]),
    )
