"""What a page reads of the files of a run folder: their shape, which is checked before use.

In:   the parsed JSON of a file.
Out:  nothing, or InputError with the place of the first value that is not as it has to be.
Not:  keys that no page reads are not looked at. A key that an older version did not write may be
      missing, unless it is Required.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import first_fault
from dcil_dsl.words.metrics import METRICS

if sys.version_info >= (3, 12):
    from typing import Required, TypedDict
else:
    from typing_extensions import Required, TypedDict

Metrics = dict[str, float]
STRICT = ConfigDict(strict=True)


class _Result(TypedDict, total=False):
    step: Required[int]
    accuracies: Required[dict[str, Metrics]]
    sparsity_asked: Required[float]
    sparsity_measured: Required[float]
    cost: Required[float]
    seconds: float
    counts: str
    at_floor: list[str]
    at_ceiling: list[str]


class _Claim(TypedDict, total=False):
    text: Required[str]
    holds: Required[bool | None]


class _Layer(TypedDict):
    parameter: str
    num_weights: int
    num_nonzero: int


class _Weights(TypedDict, total=False):
    layers: list[_Layer]


class _Device(TypedDict, total=False):
    type: str
    name: str


@with_config(STRICT)
class _Report(TypedDict, total=False):
    result: Required[_Result]
    complete: bool
    expect: list[_Claim]
    weights: _Weights
    versions: dict[str, str]
    device: _Device


@with_config(STRICT)
class _Line(TypedDict, total=False):
    epoch: Required[int]
    step: Required[int]
    losses: Metrics
    sparsity_asked: float
    sparsity_measured: float
    mask_flips: int
    mask_revived: int
    at_floor: list[str]
    at_ceiling: list[str]


@with_config(STRICT)
class _StartFile(TypedDict, total=False):
    weights: str
    metrics: Metrics


@with_config(STRICT)
class _Command(TypedDict, total=False):
    weights: str | None


class _LayerLosses(TypedDict):
    parameter: str
    losses: list[float]


@with_config(STRICT)
class _Profile(TypedDict):
    levels: list[float]
    layers: list[_LayerLosses]


class _Times(TypedDict, total=False):
    engine: str
    batch: int
    threads: int
    median: float
    problem: str


@with_config(STRICT)
class _Bench(TypedDict, total=False):
    times: list[_Times]


SHAPES: dict[str, TypeAdapter[Any]] = {
    "report.json": TypeAdapter(_Report),
    "start.json": TypeAdapter(_StartFile),
    "command.json": TypeAdapter(_Command),
    "sensitivity.json": TypeAdapter(_Profile),
    "bench.json": TypeAdapter(_Bench),
}
LINE: TypeAdapter[Any] = TypeAdapter(_Line)
OF_METRIC: TypeAdapter[Any] = TypeAdapter(Metrics, config=STRICT)


def check_shape(file: Path, found: dict[str, Any]) -> None:
    """Refuse a file of a run folder whose values a page cannot use."""
    try:
        SHAPES[file.name].validate_python(found)
    except ValidationError as error:
        raise InputError(f"cannot read {file}: {first_fault(error)}") from None


def check_line(place: str, line: object) -> None:
    """Refuse a line of metrics.jsonl; `place` is its file and number."""
    try:
        LINE.validate_python(line)
        for name in METRICS:
            if isinstance(line, dict) and name in line:
                OF_METRIC.validate_python(line[name])
    except ValidationError as error:
        raise InputError(f"{place}: not the line of an epoch: {first_fault(error)}") from None
