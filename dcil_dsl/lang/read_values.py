"""Values into plain Python: numbers, shares, moments and ranges, and what is wrong with them.

In:   closed nodes (link.py).
Out:  numbers, values.py, Bare for a name, a tuple for a list; E205, E206, E214 in a Diagnostics.
Not:  no word of the vocabulary (words.py), no judgement of a setting's type or limits (pydantic).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.refusals import Bare, origin
from dcil_dsl.words.units import Percent, Range, Time, kind_of, written


class Broken(Exception):
    """A value that is wrong and was told about."""


class ValueReader:
    """Reads values; `epochs` is the length of the run where it is known, to compare moments."""

    def __init__(self, found: Diagnostics, epochs: float | None):
        self.found, self.epochs = found, epochs

    def value(self, node: ast.Value) -> object:
        """A value in plain Python: numbers, values.py, Bare for a name, tuple for a list."""
        match node:
            case ast.Literal(value=value):
                if value is BROKEN:
                    raise Broken
                self._within_limits(value, node)
                return value
            case ast.Name(name=name):
                return Bare(name)
            case ast.List(items=items):
                return tuple(self.value(item) for item in items)
            case ast.RangeOf(start=start, stop=stop):
                return self._range(node, self.value(start), self.value(stop))
            case ast.Call(name=name):
                self.found.add("E206", f"`{name.name}(...)` has no meaning here", node.span)
                raise Broken
        raise AssertionError(f"link.py left {node!r}")

    def _within_limits(self, value: object, node: ast.Literal) -> None:
        fact = None
        if isinstance(value, Percent) and not 0 <= value.fraction <= 1:
            fact = f"{written(value)} is not between 0% and 100%"
        elif isinstance(value, Time):
            if value.value < 0:
                fact = f"{written(value)} is before the run starts"
            elif value.unit == "run" and value.value > 1:
                fact = f"{written(value)} is after the run ends"
            elif value.unit == "steps" and value.value != int(value.value):
                fact = f"{written(value)} is not a whole number of steps"
            elif value.value > 1e12:
                fact = f"{written(value)} is longer than any run"
        if fact is not None:
            self.found.add("E205", fact, node.span, others=origin(node))
            raise Broken

    def _range(self, node: ast.RangeOf, start: object, stop: object) -> Range:
        if not (isinstance(start, Time) and isinstance(stop, Time)):
            help = "for example `0ep..75% run`"
            wrong = next(x for x in (start, stop) if not isinstance(x, Time))
            if isinstance(wrong, Percent) and isinstance(start, (Percent, Time)):
                ends = [_as_time(x) for x in (start, stop) if isinstance(x, (Percent, Time))]
                help = f"did you mean `{'..'.join(ends)}`?" if len(ends) == 2 else help
            self.found.add(
                "E206",
                f"a range goes from a time to a time, not {_kind_of(wrong)}",
                node.span,
                help=help,
            )
            raise Broken
        order = self.compare(start, stop)
        if order is not None and order >= 0:
            what = "starts where it ends" if order == 0 else "ends before it starts"
            swapped = f"did you mean `{written(stop)}..{written(start)}`?"
            self.found.add("E214", f"this range {what}", node.span, help=swapped if order else None)
            raise Broken
        return Range(start, stop)

    def compare(self, first: Time, second: Time) -> int | None:
        """-1, 0 or 1 as the first comes before the second; None where only a run can tell."""
        if first.unit == second.unit:
            a, b = first.value, second.value
        else:
            a, b = self._epochs(first), self._epochs(second)
            if a is None or b is None:
                return None
        return (a > b) - (a < b)

    def _epochs(self, time: Time) -> float | None:
        if time.value == 0:
            return 0.0
        if time.unit == "epochs":
            return time.value
        return None if time.unit == "steps" or self.epochs is None else time.value * self.epochs


def _as_time(value: Percent | Time) -> str:
    if isinstance(value, Time):
        return written(value)
    # 0% of a run is its start, which is usually written 0ep.
    return f"{written(value)} run" if value.fraction else "0ep"


def _kind_of(value: object) -> str:
    return f"the name `{value}`" if isinstance(value, Bare) else kind_of(value)
