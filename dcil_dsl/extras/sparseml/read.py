"""A SparseML recipe as modifiers, each value with its line.

In:   the text of a YAML file, or of a Markdown file with YAML between lines of dashes.
Out:  Modifier values in the order of the file. InputError where it is not such a recipe.
Not:  nothing is constructed from a tag; of `eval(...)` arithmetic alone is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sparseml.expressions import evaluated

_FRONT = re.compile(r"^---[ \t]*$(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class YamlValue:
    """A value: a number, a string, a boolean, None, a list of YamlValue or a dict of them."""

    value: Any
    line: int


@dataclass(frozen=True)
class Modifier:
    """One entry: `- !GMPruningModifier` with its settings."""

    name: str
    line: int
    settings: dict[str, YamlValue]


def read_modifiers(text: str, name: str) -> list[Modifier]:
    """Every modifier of a recipe, of all stages and groups."""
    try:
        import yaml
    except ImportError:
        raise InputError(
            "recipes of SparseML are YAML, and PyYAML is not installed",
            help="pip install 'dcil-dsl[sparseml]'",
        ) from None
    front = _FRONT.search(text)
    skipped = text.count("\n", 0, front.start(1)) if front else 0
    try:
        root = yaml.compose(front[1] if front else text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f":{mark.line + 1 + skipped}"
        raise InputError(f"{name}{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: this is not YAML: {first}") from None
    found: list[Modifier] = []
    variables: dict[str, list[object]] = {}
    _collect(root, skipped, found, set(), variables)
    known = {name: values[0] for name, values in variables.items() if len(set(values)) == 1}
    for one in found:
        one.settings.update({key: _closed(value, known) for key, value in one.settings.items()})
    if not found:
        raise InputError(
            f"{name} has no modifiers of SparseML",
            help="they are written `- !GMPruningModifier`, below a key such as pruning_modifiers",
        )
    return found


def _collect(
    node: Any,
    skipped: int,
    found: list[Modifier],
    seen: set[int],
    variables: dict[str, list[object]],
) -> None:
    """Modifiers in a node and below it, and the values of variables by name, of all stages.

    A node that aliases share is looked at once.
    """
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "mapping" and node.tag.startswith("!"):
        settings = {key.value: _given(value, skipped, 0) for key, value in node.value}
        line = node.start_mark.line + 1 + skipped
        found.append(Modifier(node.tag.lstrip("!"), line, settings))
    elif node.id == "mapping":
        for key, value in node.value:
            if value.id == "scalar":
                held = _scalar(value.tag.rpartition(":")[2], value.value)
                variables.setdefault(str(key.value), []).append(held)
            else:
                _collect(value, skipped, found, seen, variables)
    elif node.id == "sequence":
        for value in node.value:
            _collect(value, skipped, found, seen, variables)


MAX_NESTED = 20


def _closed(given: YamlValue, variables: dict[str, object]) -> YamlValue:
    """The value with expressions replaced by what they amount to; others stay text."""
    value = given.value
    if isinstance(value, list):
        return YamlValue([_closed(one, variables) for one in value], given.line)
    if isinstance(value, dict):
        return YamlValue({k: _closed(v, variables) for k, v in value.items()}, given.line)
    found = evaluated(value, variables) if isinstance(value, str) else None
    return given if found is None else YamlValue(found, given.line)


def _given(node: Any, skipped: int, depth: int) -> YamlValue:
    line = node.start_mark.line + 1 + skipped
    if depth > MAX_NESTED:
        raise InputError(f"line {line}: this is nested too deeply")
    if node.id == "sequence":
        return YamlValue([_given(one, skipped, depth + 1) for one in node.value], line)
    if node.id == "mapping":
        pairs = {key.value: _given(value, skipped, depth + 1) for key, value in node.value}
        return YamlValue(pairs, line)
    return YamlValue(_scalar(node.tag.rpartition(":")[2], node.value), line)


def _scalar(kind: str, text: str) -> object:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind in ("int", "float"):
        try:
            return float(text) if kind == "float" else int(text.replace("_", ""))
        except ValueError:
            return text
    return text
