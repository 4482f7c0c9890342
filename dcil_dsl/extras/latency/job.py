"""Time a network at several sparsities of the layers that a recipe prunes.

In:   a recipe, a model, sparsities.
Out:  a SpeedProfile: what the targets `speedup(...)` and `latency(...)` read.
Not:  no training, and no file written. The clock is that of `dcil bench`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.extras.bench.measure import (
    LIBRARIES,
    Contestant,
    Times,
    describe_cpu,
    measure_row,
    processes_of,
)
from dcil_dsl.extras.cpu.export import write
from dcil_dsl.extras.latency.profile import SpeedProfile
from dcil_dsl.extras.latency.word import Timed
from dcil_dsl.jobs.example import example_of
from dcil_dsl.jobs.prepare import Note, Warn, load_recipe, prepare, warn_in_python
from dcil_dsl.lang import recipe as r
from dcil_dsl.masking.select import keep_top
from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.targets import Uniform
from dcil_dsl.words.units import Percent

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
DENSE = ("torch", "onnxruntime", "openvino")
SPARSE = "dcil"


def measure_speed(
    source: str | Path | r.Recipe,
    model: str | nn.Module,
    *,
    overrides: Mapping[str, str] = {},
    weights: str | None = None,
    levels: Sequence[float] = LEVELS,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 15,
    dense: Sequence[str] = DENSE,
    warn: Warn | None = None,
    note: Note | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> SpeedProfile:
    """Prune the layers of the recipe's timed rule, or of all its rules where none is timed, to each
    level by magnitude, and time all networks in turn.

    dense  the engines for the dense network; those that are missing here are left out
    tell   called with what is done next

    Raises RecipeError, InputError.
    """
    warn, note = warn or warn_in_python, note or (lambda text: None)
    if not levels or not all(0 < level < 1 for level in levels):
        raise InputError("sparsities are between 0% and 100%")
    levels = (0.0, *sorted(set(levels)))
    recipe = load_recipe(source, overrides, warn)
    timed = [isinstance(_target(rule), Timed) for rule in recipe.rules]
    prepared = prepare(
        replace(recipe, rules=tuple(map(_at_half, recipe.rules))),
        model,
        warn=warn,
        note=note,
        steps_per_epoch=10**6,  # no schedule is cut off: nothing is trained
        weights=weights,
    )
    plan, network = prepared.plan, prepared.traced.model.cpu().eval()
    layers = _layers(plan, recipe, timed)
    if not layers:
        raise InputError("the recipe prunes no single weights, so there is nothing to time")
    example = example_of(Deployed(network, None, plan), batch=max(2, batch))
    with tempfile.TemporaryDirectory(prefix="dcil-speed-") as name:
        contestants: list[Contestant] = []
        for level in levels:
            tell(f"pruning to {100 * level:g}%")
            folder = str(Path(name) / f"at-{len(contestants)}")
            write(_pruned(network, layers, level), example, folder)
            contestants.append(Contestant(f"{SPARSE}-{level}", SPARSE, folder))
        first = contestants[0].folder
        contestants += [Contestant(f"dense-{one}", one, first) for one in dense]
        tell("timing")
        with processes_of(contestants, threads) as started:
            times = {one.engine: one for one in measure_row(started, batch, threads, rounds)}
    found = {one: times[f"dense-{one}"] for one in dense if times[f"dense-{one}"].seconds}
    seconds = [_median(times[f"{SPARSE}-{level}"]) for level in levels]
    if not found:
        raise InputError(f"no dense engine runs here: {times[f'dense-{dense[0]}'].problem}")
    machine = describe_cpu()
    return SpeedProfile(
        model=plan.model.name or "",
        machine=str(machine["cpu"]),
        date=str(machine["date"]),
        versions={name: machine[name] for name in LIBRARIES if machine[name]},
        engine=SPARSE,
        batch=batch,
        threads=threads,
        layers=layers,
        levels=levels,
        seconds=tuple(seconds),
        dense={name: one.median for name, one in found.items()},
    )


def _target(rule: r.PruneRule | r.KeepRule) -> object:
    return rule.target if isinstance(rule, r.PruneRule) else None


def _at_half(rule: r.PruneRule | r.KeepRule) -> r.PruneRule | r.KeepRule:
    """A rule of the same layers that needs no profile."""
    if not isinstance(rule, r.PruneRule) or not rule.target.needs_layers:
        return rule
    return replace(rule, target=Uniform(sparsity=Percent(0.5)))


def _layers(plan: Plan, recipe: r.Recipe, timed: Sequence[bool]) -> dict[str, int]:
    """The weights that the timed rules prune, else all single weights under rules."""
    lines = {
        f"{rule.span.source.name}:{rule.span.line}"
        for rule, is_timed in zip(recipe.rules, timed, strict=True)
        if is_timed
    }
    return {
        name: size
        for group in plan.groups
        if group.unit.single and group.pattern is None and (not lines or group.rule in lines)
        for name, size in zip(group.parameters, group.num_weights, strict=True)
    }


@torch.no_grad()
def _pruned(network: nn.Module, layers: Mapping[str, int], level: float) -> nn.Module:
    """A copy whose layers have lost their smallest weights."""
    pruned = copy.deepcopy(network)
    for name, size in layers.items():
        weight = pruned.get_parameter(name)
        keep = max(1, size - int(size * level))
        weight.mul_(keep_top([weight.abs()], keep, [1])[0])
    return pruned


def _median(times: Times) -> float:
    if not times.seconds:
        raise InputError(f"the sparse kernels do not run this network here: {times.problem}")
    return times.median
