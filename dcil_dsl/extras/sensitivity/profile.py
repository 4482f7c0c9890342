"""How sensitive a network is to pruning each of its layers, as measured: the profile.

In:   what extras/sensitivity measured; or the JSON file that it became.
Out:  Profile; its curves, monotone, as the allocation by sensitivity reads them.
Not:  nothing is measured here and no budget divided (least_loss.py).
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, ConfigDict, Field, ValidationError, model_validator

from dcil_dsl.plan.plan import PlanRecord


class LayerProfile(PlanRecord):
    """One weight pruned alone, all others unpruned; one entry per level of the profile.

    losses  the loss less the unpruned network's
    scores  the metric less the unpruned network's; profiles of images called it top1
    private  the recipe has it once for each path, so that no rule can prune it
    """

    model_config = ConfigDict(allow_inf_nan=True)  # _check tells of it by name

    parameter: str
    module: str
    num_weights: int
    losses: tuple[float, ...]
    scores: Annotated[tuple[float, ...], Field(validation_alias=AliasChoices("scores", "top1"))]
    private: bool = False


class Profile(PlanRecord):
    """One-shot magnitude masks on the weights as they were, no step of training after.

    model, data   as the command line named them; weights: where they came from, "" if fresh
    part          "val": held-out examples; "train": training examples, not augmented
    levels        the sparsities tried, rising, each in 0..1
    metric        the first one of the task
    loss, score   of the unpruned network on the same examples
    """

    format: Literal[1] = 1
    kind: Literal["sensitivity"] = "sensitivity"
    model: str
    data: str
    weights: str
    part: Literal["val", "train"] = "val"
    num_batches: int
    num_examples: int
    levels: tuple[float, ...]
    loss: float
    metric: str = "top1"
    score: Annotated[float, Field(validation_alias=AliasChoices("score", "top1"))]
    layers: tuple[LayerProfile, ...]

    @model_validator(mode="after")
    def _check(self) -> Profile:
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or not 0 < self.levels[0] <= self.levels[-1] < 1:
            raise ValueError("its levels are not rising sparsities between 0 and 1")
        for layer in self.layers:
            if len(layer.losses) != len(self.levels) or len(layer.scores) != len(self.levels):
                raise ValueError(f"{layer.parameter} does not have one entry for each level")
        return self

    def to_json(self) -> str:
        """JSON with a line per layer, numbers to six digits, to be read next to recipes."""
        head = self.model_dump(mode="json", exclude={"layers"})
        plain = (layer.model_dump(mode="json", exclude_defaults=True) for layer in self.layers)
        rows = ",\n".join(f"  {json.dumps(_rounded(layer))}" for layer in plain)
        return json.dumps(_rounded(head))[:-1] + f', "layers": [\n{rows}\n]}}\n'

    def curve(self, parameter: str) -> tuple[tuple[float, float], ...]:
        """(sparsity, loss increase), rising in both, from (0, 0). KeyError for another layer.

        Where noise makes a sparser layer cost less, the curve keeps the larger increase before it.
        Between the points it is a straight line.
        """
        layer = next((one for one in self.layers if one.parameter == parameter), None)
        if layer is None:
            raise KeyError(parameter)
        points, highest = [(0.0, 0.0)], 0.0
        for level, loss in zip(self.levels, layer.losses, strict=True):
            highest = max(highest, loss)
            points.append((level, highest))
        return tuple(points)


def _rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list():
            return [_rounded(one) for one in value]
    return value


class ProfileError(Exception):
    """A profile that cannot be read, with the reason in a few words."""


def read_profile(path: Path) -> Profile:
    """The profile in a file. Raises ProfileError."""
    try:
        profile = Profile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProfileError("there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(getattr(error, "strerror", None) or "it is not text") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ProfileError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    for layer in profile.layers:  # a NaN loss would count as no loss
        odd = [at for at, x in zip(profile.levels, layer.losses, strict=True) if not isfinite(x)]
        if odd:
            raise ProfileError(f"the loss of {layer.parameter} at {100 * odd[0]:g}% is not finite")
    return profile
