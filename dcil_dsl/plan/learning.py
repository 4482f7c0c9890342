"""What `train` says of single weights: averages, groups and penalties, for this model.

In:   words of a recipe with their selectors, a model, the groups of the Plan.
Out:  TrainPlan, and the words with the names of their parameters; E322 and E326.
Not:  no `prune` rule (allocate.py).
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.records import RestPenalty
from dcil_dsl.plan.select import Selection
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.step import WeightAverage
from dcil_dsl.words.weight_groups import WeightGroup, frozen_names
from dcil_dsl.words.word import RunLength


def train_plan(
    train: Train,
    average: WeightAverage | None,
    groups: tuple[WeightGroup, ...],
    penalties: tuple[RestPenalty, ...],
    num_epochs: int,
    run: RunLength,
) -> p.TrainPlan:
    """The part of the Plan. average, groups, penalties: the words with their parameters."""
    return p.TrainPlan(
        num_epochs=num_epochs,
        optimizer=train.optimizer.in_steps(run),
        rate=train.lr.in_steps(run),
        precision=train.precision,
        clip=train.clip,
        ema=train.ema,
        accumulate=train.accumulate,
        sync_norms=train.sync_norms,
        average=average,
        balance=train.balance and train.balance.in_steps(run),
        mirror=train.mirror and train.mirror.in_steps(run),
        integrator=train.integrator and train.integrator.in_steps(run),
        groups=groups,
        penalties=penalties,
        stop=train.stop and train.stop.in_steps(run),
        checkpoint=train.checkpoint,
        reset=tuple(run.steps(time).step for time in train.reset),
        seed=train.seed,
    )


def average_of(
    average: r.AverageRule | None,
    model: nn.Module,
    selection: Selection,
    groups: tuple[p.Group, ...],
    run: RunLength,
    report: Diagnostics,
) -> WeightAverage | None:
    """The average with its parameters by their names in the model, each once."""
    if average is None:
        return None
    word = average.word.in_steps(run)
    names = _named(model)
    chosen = dict.fromkeys(_parameters(average.selector, names, selection))
    pruned = {name for group in groups for name in group.parameters}
    fault = word.fault(chosen, pruned, len(names), run.num_steps)
    if fault is not None:
        report.add("E322", fault[0], average.span, help=fault[1])
    return word.model_copy(update={"parameters": tuple(chosen)})


def weight_groups(
    rules: tuple[r.GroupRule, ...],
    model: nn.Module,
    selection: Selection,
    groups: tuple[p.Group, ...],
    run: RunLength,
    report: Diagnostics,
) -> tuple[WeightGroup, ...]:
    """The words of `groups` with their parameters by their names in the model; E326."""
    names, axes = _named(model), {name: x.dim() for name, x in model.named_parameters()}
    pruned = {name for group in groups for name in group.parameters}
    found: list[WeightGroup] = []
    for rule in rules:
        named = rule.word.layers_named
        all_of = list(names.values())
        if rule.selector is not None:
            all_of = _parameters(rule.selector, names, selection)
        chosen = tuple(dict.fromkeys(x for x in all_of if rule.word.takes(x, axes[x])))
        both = next((name for name in chosen if name in pruned), None)
        if not chosen:
            whose = f"the layers of `{named}` have" if named else "the model has"
            report.add("E326", f"{whose} no weights of this group", rule.span)
        elif rule.word.is_frozen and both is not None:
            report.add(
                "E326",
                f"`{both}` is frozen and pruned",
                rule.span,
                label="frozen weights stay as they are",
                help=f'`keep "{both.rpartition(".")[0]}"` excludes it from pruning',
            )
        elif rule.word.is_frozen and len(chosen) == len(axes):
            report.add("E326", f"`{named}` is all weights, so that none would learn", rule.span)
        found.append(rule.word.in_steps(run).model_copy(update={"parameters": chosen}))
    return tuple(found)


def rest_penalties(
    rules: tuple[r.PenaltyRule, ...],
    model: nn.Module,
    selection: Selection,
    layers: tuple[p.PlanLayer, ...],
    learning: tuple[WeightGroup, ...],
    run: RunLength,
    report: Diagnostics,
) -> tuple[RestPenalty, ...]:
    """The words of `penalty` in `train` with their parameters: those that learn, that no rule
    prunes, and biases where the word says so; E326."""
    names = _named(model)
    still = frozen_names(learning) | {n for n, x in model.named_parameters() if not x.requires_grad}
    still |= {layer.parameter for layer in layers if layer.group is not None}
    axes = {layer.parameter: layer.out_axis for layer in layers}
    num_axes = {name: x.dim() for name, x in model.named_parameters()}
    found: list[RestPenalty] = []
    for rule in rules:
        all_of = list(names.values())
        if rule.selector is not None:
            all_of = _parameters(rule.selector, names, selection)
        biases = rule.word.biases
        chosen = [x for x in all_of if biases or "bias" not in x.rpartition(".")[2]]
        chosen = [name for name in dict.fromkeys(chosen) if name not in still]
        odd = next((x for x in chosen if num_axes[x] > 1 and x not in axes), None)
        whose = f"the layers of `{rule.word.of}` have" if rule.word.of else "the model has"
        if not chosen:
            report.add(
                "E326",
                f"{whose} no weights that learn and that no rule prunes",
                rule.span,
                help=None if biases else "`biases = true` takes biases too",
            )
        elif rule.word.needs_axis and odd is not None:
            report.add(
                "E326",
                f"`{odd}` has no filters",
                rule.span,
                help=f"`{rule.word.called}(rest, ..., of=NAME)` takes some layers",
            )
        else:
            found.append(
                RestPenalty(
                    word=rule.word.in_steps(run),
                    parameters=tuple(chosen),
                    axes=tuple(axes.get(name, 0) for name in chosen),
                )
            )
    return tuple(found)


def _named(model: nn.Module) -> dict[int, str]:
    """The parameters of the model by id, each once."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _parameters(selector: ast.Selector, names: dict[int, str], selection: Selection) -> list[str]:
    """The parameters of the selected layers, by their names in the model."""
    return [
        names[id(parameter)]
        for layer in selection.select(selector)
        for parameter in layer.module.parameters()
    ]
