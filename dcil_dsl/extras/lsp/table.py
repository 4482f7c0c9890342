"""The layers of a model as plain data, which selectors are evaluated on without torch.

In:   the JSON that layer_table.py writes.
Out:  LayerTable, whose layers look to plan/select.py like those of a traced model.
Not:  nothing is built or traced, and nothing of the JSON is run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


class TableError(Exception):
    """A table that cannot be had, with the reason."""


class KnownModule:
    """A module's attributes. Those of its class are found too, but are not in `vars`."""

    def __init__(self, own: dict[str, object], of_class: dict[str, object], has_weights: bool):
        vars(self).update(own)
        vars(self)["_of_class"] = of_class
        vars(self)["_parameters"] = dict.fromkeys(["weight"]) if has_weights else {}

    def __getattr__(self, name: str) -> object:
        try:
            return vars(self)["_of_class"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class KnownWeight:
    name: str
    shape: tuple[int, ...]
    macs: int | None = None

    @property
    def size(self) -> int:
        size = 1
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True)
class KnownLayer:
    """One module of the model; the fields of model/layers.py that selecting reads."""

    path: str
    types: tuple[str, ...]
    prunable: tuple[KnownWeight, ...]
    no_mask: str | None
    module: KnownModule

    @property
    def type(self) -> str:
        return self.types[0]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(weight.name for weight in self.prunable)

    @property
    def size(self) -> int:
        """Weights that can be pruned."""
        return sum(weight.size for weight in self.prunable)


@dataclass(frozen=True)
class LayerTable:
    """spec: the model as it was built. name: its class. layers: in execution order."""

    spec: str
    name: str
    layers: tuple[KnownLayer, ...]


def read_table(file: Path) -> LayerTable:
    """The table in a file. TableError if it holds the reason why there is none, or is damaged."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        if read["format"] != FORMAT:
            raise TableError("it has another format")
        if "failed" in read:
            raise TableError(str(read["failed"]))
        layers = tuple(_layer(one) for one in read["layers"])
        return LayerTable(str(read["spec"]), str(read["name"]), layers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise TableError(f"the table of layers cannot be read: {error}") from None


def _layer(read: dict[str, Any]) -> KnownLayer:
    weights = tuple(
        KnownWeight(str(one["name"]), tuple(map(int, one["shape"])), one["macs"])
        for one in read["weights"]
    )
    own = {str(name): _value(value) for name, value in read["attributes"].items()}
    of_class = {str(name): _value(value) for name, value in read["class"].items()}
    module = KnownModule(own, of_class, bool(read["has_parameters"]))
    types = tuple(map(str, read["types"]))
    if not types:
        raise ValueError("a layer has no type")
    return KnownLayer(str(read["path"]), types, weights, read["no_mask"], module)


def _value(value: object) -> object:
    """A value of JSON as the module has it: lists are tuples, records stand for other objects."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    if isinstance(value, dict):
        kind = type(str(value["type"]), (), {"__repr__": lambda _, text=str(value["repr"]): text})
        if value["type"] == "Tensor":
            kind.requires_grad = False  # type: ignore[attr-defined]
        return kind()
    return value
