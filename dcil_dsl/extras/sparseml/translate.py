"""Modifiers of SparseML as the text of a recipe, and what it cannot express.

In:   Modifier values (read.py).
Out:  Translated: a canonical, sound recipe; the losses by line.
Not:  no approximation in silence: what differs is a loss, with its line.

SparseML's masks zero weights and their gradients, so a pruned weight never comes back: one path,
`forget = true`. It recomputes masks every `update_frequency` epochs up to `end_epoch`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from dcil_dsl.diagnostics import InputError, RecipeError
from dcil_dsl.extras.sparseml.read import Modifier, YamlValue
from dcil_dsl.lang import loads
from dcil_dsl.lang.fmt import format_text
from dcil_dsl.words.schedules import Cubic, Linear

PRUNING = {  # modifier -> score, and whether it is one budget alone
    "GMPruningModifier": ("magnitude", False),
    "LegacyGMPruningModifier": ("magnitude", False),
    "MagnitudePruningModifier": ("magnitude", False),
    "GlobalMagnitudePruningModifier": ("magnitude", True),
    "MovementPruningModifier": ("movement", False),
}
READ = {
    *("params", "init_sparsity", "final_sparsity", "start_epoch", "end_epoch"),
    *("update_frequency", "inter_func", "mask_type", "global_sparsity", "leave_enabled"),
}
IGNORED = {"log_types", "constant_logging"}  # what is logged is not part of an experiment
SHAPES = (Cubic.spelling(), Linear.spelling())  # SparseML and the language call the two alike
UNITS = {"unstructured": None, "filter": "filter", "channel": "channel", "block4": "block(1, 4)"}
ALL = ("__ALL__", "__ALL_PRUNABLE__")
NO_EPOCHS, NO_LR = 10, 0.01
DEFAULTS = {"leave_enabled": True, "phased": False}
_WEIGHT = re.compile(r"(\\?\.)weight\$?$")


@dataclass
class Translated:
    """losses: (line, what is not in the recipe)."""

    text: str = ""
    losses: list[tuple[int, str]] = field(default_factory=list)


def translate(modifiers: list[Modifier], name: str, source: str) -> Translated:
    """The recipe called `name`. InputError where nothing prunes."""
    done = Translated()
    epochs, rate = _run(modifiers, done)
    rules = []
    for one in modifiers:
        if one.name in PRUNING:
            rules += _rules(one, epochs, done)
    if not rules:
        told = "; ".join(f"line {line}: {loss}" for line, loss in done.losses[:5])
        raise InputError(f"{source} has no pruning that a recipe can express", told or None)
    done.losses.sort()
    done.text = _whole(rules, epochs, rate, name, source, done)
    return done


def _whole(
    rules: list[str],
    epochs: float | None,
    rate: float | None,
    name: str,
    source: str,
    done: Translated,
) -> str:
    head = [f"# From {source}, by `dcil import`."]
    if done.losses:
        head.append("# Not in this recipe:")
        head += [f"# - line {line}: {loss}" for line, loss in done.losses]
    length = NO_EPOCHS if epochs is None else math.ceil(epochs)
    note_length = "" if epochs is not None else "  # the original does not say"
    note_rate = "the optimizer is not in the original" + ("" if rate else ", nor is the rate")
    text = "\n".join(
        [
            "language 1",
            "",
            *head,
            f'recipe {name} {{ title = "from SparseML" }}',
            "",
            *rules,
            "mix {",
            "  path sparse = masked",
            "  update kept by sparse",
            "  update rest by sparse",
            "  loss cross_entropy(sparse)  # the original leaves the loss to the training script",
            "  deploy sparse",
            "}",
            "train {",
            f"  epochs = {length}ep{note_length}",
            f"  optimizer = sgd(lr={_number(rate or NO_LR)}, momentum=0.9)  # {note_rate}",
            "}",
            "",
        ]
    )
    try:
        text = format_text(text, source)
        loads(text, source)
    except RecipeError as error:
        first = error.diagnostics[0]
        raise InputError(
            f"{source} cannot be written as a recipe: {first.message}", first.help
        ) from None
    return text


# -- the run -----------------------------------------------------------------------------------


def _run(modifiers: list[Modifier], done: Translated) -> tuple[float | None, float | None]:
    """The number of epochs and the learning rate; what else is said of the training is lost."""
    epochs: float | None = None
    rate: float | None = None
    for one in modifiers:
        settings = {key: given.value for key, given in one.settings.items()}
        if one.name == "EpochRangeModifier" and _is_number(settings.get("end_epoch")):
            epochs = max(epochs or 0.0, float(settings["end_epoch"]))
        elif (
            one.name == "SetLearningRateModifier"
            and rate is None
            and _is_number(settings.get("learning_rate"))
            and not settings.get("start_epoch")
        ):
            rate = float(settings["learning_rate"])
        elif one.name not in PRUNING:
            done.losses.append((one.line, f"{one.name}"))
    return epochs, rate


# -- rules -------------------------------------------------------------------------------------


def _rules(one: Modifier, epochs: float | None, done: Translated) -> list[str]:
    """The rules of one modifier: one, or one per sparsity; none if a part cannot be expressed."""
    before = len(done.losses)
    for key, given in one.settings.items():
        if key not in READ | IGNORED and given.value != DEFAULTS.get(key):
            done.losses.append((given.line, f"{key} of {one.name}"))
    if not _value(one, "leave_enabled", True):
        done.losses.append((one.line, f"{one.name} is lifted at its end (leave_enabled: False)"))
    start = _amount(one, "start_epoch", done)
    end = _amount(one, "end_epoch", done)
    initial = _amount(one, "init_sparsity", done)
    every = _amount(one, "update_frequency", done, default=-1.0)
    shape = _value(one, "inter_func", SHAPES[0])
    if shape not in SHAPES:
        line = _line(one, "inter_func")
        done.losses.append((line, f"{one.name}: inter_func {shape} has no equivalent in a recipe"))
    unit = _unit(one, done)
    targets = _targets(one, done)
    fatal = {"start_epoch", "end_epoch", "init_sparsity", "final_sparsity", "params", "mask_type"}
    lost = {text for _, text in done.losses[before:]}
    if (
        start is None
        or end is None
        or initial is None
        or every is None
        or shape not in SHAPES
        or unit is False
        or not targets
        or any(key in text.split() for key in fatal for text in lost)
    ):
        done.losses.append((one.line, f"{one.name}, for the reason above"))
        return []
    end = epochs if end < 0 and epochs is not None else end
    if end is None or end <= start:
        done.losses.append((one.line, f"{one.name} ends at {end}, before it starts"))
        return []
    if initial > 0 and start > 0:
        text = "init_sparsity holds from the first step, not from start_epoch"
        done.losses.append((_line(one, "init_sparsity"), text))
    if every > 0 and abs(start / every - round(start / every)) > 1e-9:
        text = "masks move at multiples of update_frequency, not counted from start_epoch"
        done.losses.append((_line(one, "update_frequency"), text))
    score, is_global = PRUNING[one.name]
    is_global = is_global or bool(_value(one, "global_sparsity", False))
    ramp = f"{shape}({_number(start)}ep..{_number(end)}ep"
    ramp += f", initial={_percent(initial)})" if initial > 0 else ")"
    settings = [
        f"schedule = {ramp}",
        f"refresh = {f'{_number(every)}ep' if every > 0 else '1 step'}",
        f"freeze = {_number(end)}ep",
        "forget = true",
        *([f"score = {score}"] if score != "magnitude" else []),
        *([f"granularity = {unit}"] if unit else []),
    ]
    word = "global" if is_global else "uniform"
    for share, _ in targets:
        if share <= initial:
            text = f"init_sparsity {_number(initial)} is not below final_sparsity {_number(share)}"
            done.losses.append((_line(one, "init_sparsity"), f"{text}: a rule of {one.name}"))
    targets = [(share, selector) for share, selector in targets if share > initial]
    return [
        f"prune {selector} to {word}({_percent(share)}) {{\n" + "\n".join(settings) + "\n}\n"
        for share, selector in targets
    ]


def _targets(one: Modifier, done: Translated) -> list[tuple[float, str]]:
    """(share, selector): SparseML gives one sparsity, or parameters by sparsity."""
    final = one.settings.get("final_sparsity")
    params = one.settings.get("params")
    if final is not None and isinstance(final.value, dict):
        pairs = [(share, given) for share, given in final.value.items()]
    elif final is not None and params is not None:
        pairs = [(final.value, params)]
    else:
        done.losses.append((one.line, f"{one.name} has no final_sparsity or no params"))
        return []
    found = []
    for given_share, given in pairs:
        try:
            share = float(given_share)
        except (TypeError, ValueError):
            share = -1.0
        selector = _selector(given, one, done)
        if not 0 < share < 1:
            line = one.line if final is None else final.line
            done.losses.append((line, f"final_sparsity {given_share} is not between 0 and 1"))
            return []
        if selector is None:
            return []
        found.append((share, selector))
    return found


def _selector(given: YamlValue, one: Modifier, done: Translated) -> str | None:
    names = given.value if isinstance(given.value, list) else [given]
    parts: list[str] = []
    for each in names:
        text = each.value
        if not isinstance(text, str) or '"' in text or "\n" in text or text.startswith("eval("):
            done.losses.append((each.line, f"params {text} of {one.name}"))
            return None
        if text in ALL or text in ("re:.*", "re:.*weight", r"re:.*\.weight"):
            # Embeddings too, which SparseML leaves out; a model without any would be refused
            # where the recipe excludes them.
            parts.append('"**"')
            done.losses.append((each.line, "__ALL_PRUNABLE__ leaves embeddings out, `**` does not"))
        elif text.startswith("re:"):
            parts.append(f're"{_regex(text.removeprefix("re:"))}"')
        else:
            parts.append(f'"{text.removesuffix(".weight")}"')
    return ", ".join(parts) if parts else None


def _regex(pattern: str) -> str:
    """A pattern for the beginning of a parameter's name as one for the whole name of a layer."""
    stem, found = _WEIGHT.sub("", pattern), _WEIGHT.search(pattern)
    if found:
        return stem
    return pattern.rstrip("$") if pattern.endswith("$") else f"(?:{pattern}).*"


def _unit(one: Modifier, done: Translated) -> str | bool | None:
    """The granularity; None for single weights, False for a mask type that no recipe says."""
    given = one.settings.get("mask_type")
    if given is None:
        return None
    value = given.value
    if isinstance(value, list):
        sides = [each.value for each in value]
        if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
            return None if sides == [1, 1] else f"block({sides[0]}, {sides[1]})"
    elif isinstance(value, str) and value in UNITS:
        return UNITS[value]
    done.losses.append((given.line, f"mask_type {value} of {one.name}"))
    return False


def _amount(
    one: Modifier, key: str, done: Translated, default: float | None = None
) -> float | None:
    given = one.settings.get(key)
    if given is None:
        if default is None:
            done.losses.append((one.line, f"{one.name} has no {key}"))
        return default
    if not _is_number(given.value):
        done.losses.append((given.line, f"{key} {given.value} is not a number"))
        return None
    return float(given.value)


def _value(one: Modifier, key: str, default: Any) -> Any:
    return one.settings[key].value if key in one.settings else default


def _line(one: Modifier, key: str) -> int:
    return one.settings[key].line if key in one.settings else one.line


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _percent(share: float) -> str:
    return f"{_number(100 * share)}%"
