"""Quantities with units: percentages, times, ranges and ratios.

In:   numbers with units.
Out:  Percent, Time, Range and Ratio; how they combine, and how they are written.
Not:  no text is parsed (lang/build.py).

`combine` refuses to mix units, `written` prints a quantity as a recipe writes it. In a plan a
time is a whole number of steps, a percentage a fraction and a range a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, cast

from pydantic_core import CoreSchema, core_schema

MAX_WHOLE = 2**53 - 1  # beyond it not every whole number is one of float64


class UnitError(ValueError):
    """Two quantities that cannot be combined; the message says which."""


class Quantity:
    """A value that settings take as it is, and that a plan's JSON holds as plain numbers."""

    @classmethod
    def from_plan(cls, value: Any) -> Quantity:
        """The quantity of a number in JSON. ValueError if it is not one."""
        raise NotImplementedError

    def in_plan(self) -> object:
        """What the JSON of a plan holds."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        # Python values are checked by their class, so that 0.9 is not taken for 90%.
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_plain_validator_function(cls.from_plan),
            python_schema=core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls.in_plan, when_used="json"
            ),
        )


@dataclass(frozen=True, order=True)
class Percent(Quantity):
    """A share of something; `fraction` is 0.9 for 90%."""

    fraction: float

    @classmethod
    def from_plan(cls, value: Any) -> Percent:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError("a share is a number from 0 to 1")
        return cls(value)

    def in_plan(self) -> float:
        return self.fraction


@dataclass(frozen=True)
class Ratio:
    """`2:4`, read "keep 2 of every 4"."""

    keep: int
    of: int


TimeUnit = Literal["epochs", "steps", "run"]


@dataclass(frozen=True)
class Time(Quantity):
    """A moment or a length of the run, counted in optimizer steps once resolved.

    unit "epochs" | "steps" | "run"; `value` is 0.75 for `75% run`.
    """

    value: float
    unit: TimeUnit

    def to_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """The step this moment falls on, rounded to the nearest."""
        scale = {"epochs": steps_per_epoch, "steps": 1, "run": num_steps}[self.unit]
        return int(self.value * scale + 0.5)

    @property
    def step(self) -> int:
        """The number of steps of a resolved time."""
        assert self.unit == "steps", f"{written(self)} is not resolved"
        return int(self.value)

    @classmethod
    def from_plan(cls, value: Any) -> Time:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError("a time is a whole number of steps, at least 0")
        return cls(value, "steps")

    def in_plan(self) -> int:
        return self.step


@dataclass(frozen=True)
class Range(Quantity):
    """`start..stop`, two times."""

    start: Time
    stop: Time

    @classmethod
    def from_plan(cls, value: Any) -> Range:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError("a range is a pair of times")
        return cls(*map(Time.from_plan, value))

    def in_plan(self) -> list[int]:
        return [self.start.in_plan(), self.stop.in_plan()]


def combine(operator: str, left: object, right: object) -> object:
    """`left operator right`, one of + - * /, as far as the units allow.

    Like units add and subtract, and divide to a number; a number scales anything. Raises
    UnitError for the rest and ZeroDivisionError. Results are rounded to 12 digits, so that
    written out and read again they are the same.
    """
    a, b = _parts(left), _parts(right)
    if a is None or b is None or isinstance(left, bool) or isinstance(right, bool):
        raise UnitError("only numbers, percentages and times can be calculated with")
    (x, unit_x), (y, unit_y) = a, b
    if operator in "+-":
        if unit_x != unit_y:
            sign = "added" if operator == "+" else "subtracted"
            raise UnitError(f"{_plural(unit_x)} and {_plural(unit_y)} cannot be {sign}")
        return _whole(x + y if operator == "+" else x - y, unit_x)
    if operator == "*":
        if unit_x and unit_y:
            raise UnitError(f"{_plural(unit_x)} and {_plural(unit_y)} cannot be multiplied")
        return _whole(x * y, unit_x or unit_y)
    if unit_y and unit_x != unit_y:
        raise UnitError(f"{_plural(unit_x)} cannot be divided by {_plural(unit_y)}")
    return _whole(x / y, "" if unit_y else unit_x)


def written(value: object) -> str:
    """A quantity as a recipe writes it: `90%`, `5ep`, `16 steps`, `75% run`, `2:4`, `0.1`."""
    if isinstance(value, Percent):
        return _digits(value.fraction * 100) + "%"
    if isinstance(value, Ratio):
        return f"{value.keep}:{value.of}"
    if isinstance(value, Time):
        if value.unit == "run":
            return _digits(value.value * 100) + "% run"
        if value.unit == "epochs":
            return _digits(value.value) + "ep"
        return _digits(value.value) + (" step" if value.value == 1 else " steps")
    if isinstance(value, Range):
        return f"{written(value.start)}..{written(value.stop)}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return _shortest(value)
    return f'"{value}"'


def kind_of(value: object) -> str:
    """What a value is, for a message: `a percentage`, `a time in epochs` ..."""
    if isinstance(value, Time):
        unit = {"epochs": "in epochs", "steps": "in steps", "run": "as a share of the run"}
        return f"a time {unit[value.unit]}"
    kinds = (
        (bool, "a yes or no"),
        ((int, float), "a number"),
        (Percent, "a percentage"),
        (Ratio, "a ratio"),
        (Range, "a range"),
        (str, "a string"),
        (tuple, "a list"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "none")


def _parts(value: object) -> tuple[float, str] | None:
    if isinstance(value, (int, float)):
        return value, ""
    if isinstance(value, Percent):
        return value.fraction, "percent"
    if isinstance(value, Time):
        return value.value, value.unit
    return None


def _whole(number: float, unit: str) -> object:
    if not unit:
        # 2 * 0.5 counts as the whole number 1, so that it can be a batch size.
        # A larger one is a fraction too: whole numbers would grow without end.
        if isinstance(number, float) or abs(number) >= 1e15:
            number = float(f"{float(number):.12g}")
        return int(number) if number == int(number) and abs(number) < 1e15 else number
    scale = 100 if unit in ("percent", "run") else 1
    number = float(_digits(number * scale)) / scale
    if unit == "percent":
        return Percent(number)
    whole = unit != "run" and number == int(number)
    return Time(int(number) if whole else number, cast(TimeUnit, unit))


def _plural(unit: str) -> str:
    return {"": "numbers", "percent": "percentages", "run": "shares of the run"}.get(unit, unit)


def _digits(number: float) -> str:
    """At most 12 significant digits, no exponent: the number before a unit."""
    text = format(Decimal(f"{number:.12g}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shortest(number: float) -> str:
    """A number as its shortest exact text in the language's own notation."""
    text = repr(number).replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text[:-2] if text.endswith(".0") else text
