"""Values to plain Python, and pydantic's errors in the sentences of the language.

In:   closed nodes (link.py); a ValidationError of a word and the nodes of its settings.
Out:  numbers, units (words/units.py), Bare for a name, a tuple for a list; E205, E206, E209, E210,
      E211, E214 in a Diagnostics, each at its value.
Not:  no words (read.py). No text of pydantic is ever shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.rates import Multistep
from dcil_dsl.words.units import MAX_WHOLE, Percent, Range, Ratio, Time, kind_of, written

if TYPE_CHECKING:
    from pydantic import ValidationError

    from dcil_dsl.words.word import Word


class Bare(str):
    """A name without quotes: a word, or a path."""


@dataclass(frozen=True)
class Given:
    """One setting as written. `at`: its name, or its value if it has no name."""

    name: str
    at: Span
    value: ast.Value


class Broken(Exception):
    """A wrong value, already reported."""


class ValueReader:
    """Reads values; `epochs` is the length of the run where it is known, to compare moments."""

    def __init__(self, found: Diagnostics, lets: dict[str, Span], epochs: float | None):
        self.found, self.lets, self.epochs = found, lets, epochs

    def value(self, node: ast.Value) -> object:
        """A value in plain Python: numbers, those of words/units.py, Bare for a name, tuples."""
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
            return (first.value > second.value) - (first.value < second.value)
        a, b = self._epochs(first), self._epochs(second)
        return None if a is None or b is None else (a > b) - (a < b)

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


# -- refused settings ------------------------------------------------------------------------------


Refusal = dict[str, Any]  # an error of pydantic's
_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "`true` or `false`",
    "string_type": "a string in double quotes",
    "tuple_type": "a list in `[ ]`",
}
_WANTED_CLASS = {
    "Percent": "a percentage such as `90%`",
    "Time": "a time such as `5ep`",
    "Range": "a range of times such as `0ep..75% run`",
    "Ratio": "a ratio such as `2:4`",
}
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_NAMES = {"path": "the name of a path", "layers": "what a `layers` definition names"}
_NO = {"refresh": "masks that never move: `freeze = 0 steps`"}  # what `none` was meant for


def note(
    error: ValidationError,
    model: type[Word],
    owner: str,
    nodes: dict[str, Given],
    values: dict[str, object],
    where: Span,
    reader: ValueReader,
) -> bool:
    """Report each refusal; True if one was not reported before."""
    is_new = False
    for one in _once_a_value([{**one} for one in error.errors(include_url=False)]):
        name = one["loc"][0] if one["loc"] else ""
        if one["type"] == "missing" and len(one["loc"]) == 1:
            if name in nodes:
                continue  # given, but wrong, and already reported
            reader.found.add("E211", f"`{owner}` needs `{name}`", where, help=_example(model, name))
        else:
            _refuse(one, name, owner, nodes[name], values[name], model, reader)
        is_new = True
    return is_new


def _once_a_value(errors: Sequence[Refusal]) -> list[Refusal]:
    """pydantic's errors, those of a union as one: of its alternatives the one that fits furthest.

    `refresh` is a time or a list of times: `[5ep, 3]` is a list with one wrong item, and `3` is
    neither. There `also` has what the other alternatives say.
    """
    alternatives: dict[object, dict[str, list[Refusal]]] = {}
    for one in errors:
        name, *inner = one["loc"] or ("",)
        if inner and isinstance(inner[0], str):
            alternatives.setdefault(name, {}).setdefault(inner[0], []).append(one)
    chosen = [one for one in errors if not (one["loc"] and one["loc"][0] in alternatives)]
    for tried in alternatives.values():
        furthest = max(tried.values(), key=lambda own: min(len(one["loc"]) for one in own))
        if len(furthest[0]["loc"]) == 2:  # its outer form is another already
            furthest = [furthest[0] | {"also": [own[0] for own in tried.values()]}]
        chosen += furthest
    return chosen


def _refuse(
    one: Refusal,
    name: str,
    owner: str,
    given: Given,
    value: Any,
    model: type[Word],
    reader: ValueReader,
) -> None:
    node, inner = _at(given.value, value, one["loc"][1:])
    kind, what = one["type"], f"`{name}` of `{owner}`"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        limit = written(_short(one["ctx"][key]))
        reader.found.add(
            "E205",
            f"{what} is {written(inner)}, it must be {words} {limit}",
            node.span,
            others=origin(node),
        )
        return
    if kind in ("missing", "too_long", "too_short"):
        reader.found.add(
            "E205", f"{what} takes another count of values, not {len(value)}", given.value.span
        )
        return
    options = _options(model.model_fields[name].annotation)
    if kind == "literal_error" or options:
        _word(what, options, node, inner, reader)
        return
    if isinstance(inner, Bare):
        _undefined(inner, node, reader)
        return
    wanted = " or ".join(dict.fromkeys(_wanted(each) for each in one.get("also", [one])))
    for kind_of_name, words in _NAMES.items():
        if kind_of_name in model.model_fields[name].metadata:
            wanted = words
    is_fraction = wanted == "a whole number" and isinstance(inner, float)
    actual = repr(inner) if is_fraction else kind_of(inner)
    if is_fraction and inner == int(inner) and abs(inner) > MAX_WHOLE:
        ge = next((m.ge for m in model.model_fields[name].metadata if hasattr(m, "ge")), None)
        limits = f"of at most {MAX_WHOLE}" if ge is None else f"from {ge} to {MAX_WHOLE}"
        text = node.text if isinstance(node, ast.Literal) else written(inner)
        reader.found.add(
            "E205",
            f"{what} is a whole number {limits}, not {text}",
            node.span,
            others=origin(node),
        )
        return
    help = _NO.get(name) if inner is None else _instead(_class_name(one) or kind, inner)
    if name == "epochs" and help is not None:  # the length of a run is not given in steps
        help = help.replace(f" or `{written(inner)} steps`", "")
    if is_fraction and inner == int(inner) and abs(inner) < 1e15:
        help = f"did you mean `{int(inner)}`?"
    reader.found.add(
        "E206", f"{what} is {wanted}, not {actual}", node.span, others=origin(node), help=help
    )


def _wanted(one: Refusal) -> str:
    return _WANTED_CLASS.get(_class_name(one) or "") or _WANTED.get(
        one["type"], "another kind of value"
    )


def _class_name(one: Refusal) -> Any:
    context = one.get("ctx", {})
    return context.get("class_name") or context.get("class")


def spelled(
    model: type[Word],
    owner: str,
    nodes: dict[str, Given],
    values: dict[str, object],
    reader: ValueReader,
) -> bool:
    """Report strings that should be names and names that should be strings; True if there are none.

    To pydantic both are `str`.
    """
    good = True
    for name, value in values.items():
        info, node = model.model_fields[name], nodes[name].value
        options = _options(info.annotation)
        if not isinstance(value, str):
            continue
        wants_name = bool(options) or bool(set(_NAMES) & set(info.metadata))
        if wants_name and not isinstance(value, Bare):
            reader.found.add(
                "E206",
                f"`{name}` of `{owner}` is a name, not a string",
                node.span,
                others=origin(node),
                help=f"write `{value}` without quotes",
            )
            good = False
        elif not wants_name and isinstance(value, Bare) and str in _plain(info.annotation):
            _undefined(value, node, reader, help=f'a string is written `"{value}"`')
            good = False
    return good


def _word(
    what: str, options: tuple[str, ...], node: ast.Value, value: object, reader: ValueReader
) -> None:
    known = listed(f"`{option}`" for option in options)
    if isinstance(value, str) and not isinstance(value, Bare):
        return  # a string for a name: reported by `spelled`
    if not isinstance(value, Bare):
        reader.found.add(
            "E206", f"{what} is {known}, not {kind_of(value)}", node.span, others=origin(node)
        )
        return
    help = did_you_mean(value, [*options, *reader.lets]) or f"it is {known}"
    reader.found.add("E210", f"`{value}` is not a word for {what}", node.span, help=help)


def _undefined(value: str, node: ast.Value, reader: ValueReader, help: str | None = None) -> None:
    reader.found.add(
        "E209",
        f"`{value}` is not defined",
        node.span,
        help=did_you_mean(value, reader.lets) or help,
    )


def _instead(wanted: str, value: Any) -> str | None:
    """The value that was probably meant, ready to type."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted == "Time" and isinstance(value, Percent):
        return f"a share of the run is written `{written(value)} run`"
    if wanted == "Time" and number and value >= 0:
        return f"did you mean `{written(value)}ep` or `{written(value)} steps`?"
    if wanted == "Percent" and number and 0 <= value <= 100:
        return f"did you mean `{written(Percent(value if value < 1 else value / 100))}`?"
    if wanted == "float_type" and isinstance(value, Percent):
        return f"did you mean `{written(value.fraction)}`?"
    if wanted == "bool_type" and number and value in (0, 1):
        return f"did you mean `{'true' if value else 'false'}`?"
    if wanted == "Percent" and isinstance(value, Ratio):
        return None
    if wanted == "tuple_type" and isinstance(value, (Time, str)):
        return f"write `[{written(value)}]`"
    if wanted == "Range" and isinstance(value, Time) and value.value > 0:
        return f"did you mean `0ep..{written(value)}`?"
    return None


def _at(node: ast.Value, value: Any, loc: tuple[int | str, ...]) -> tuple[ast.Value, Any]:
    """The item of a list that a location names; other steps are pydantic's own."""
    for step in loc:
        if isinstance(step, int) and isinstance(node, ast.List) and step < len(node.items):
            node, value = node.items[step], value[step]
    return node, value


def _options(annotation: object) -> tuple[str, ...]:
    """The words of a Literal, also of one that may be none."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return tuple(a for a in get_args(part) if isinstance(a, str))
    return ()


def _plain(annotation: object) -> tuple[object, ...]:
    return (annotation, *get_args(annotation))


def _short(limit: float) -> float:
    return int(limit) if limit == int(limit) and abs(limit) < 1e15 else limit


def _example(model: type[Word], name: str) -> str | None:
    examples = {
        "sparsity": "90%",
        "over": "0ep..75% run",
        "at": "10ep",
        "path": "sparse",
        "student": "sparse",
        "teacher": "dense",
        "epochs": "100ep",
        "optimizer": "sgd(lr=0.1, momentum=0.9)",
        "lr": "0.1",
        "pixels": "4",
        "size": "224",
        "n": "2",
        "m": "4",
        "layers": "shortcuts",
        "height": "4",
        "width": "1",
        "beta": "0.97",
        "profile": '"profile.json"',
    }
    example = "[30ep, 60ep]" if model is Multistep else examples.get(name)
    if example is None:  # of a word from elsewhere
        return None
    equals = " = " if model is Train else "="
    return f"for example `{name}{equals}{example}`"


def origin(node: ast.Value) -> tuple[Label, ...]:
    """The `let` that a value came from, as a second place of a diagnostic."""
    if isinstance(node, ast.Literal) and node.origin is not None:
        return (Label(node.origin, "the value is given here"),)
    return ()
