"""Recipe x model -> Plan: every decision, no tensors.

In:   a checked Recipe, a Traced model, the number of optimizer steps in an epoch.
Out:  the Plan.
Not:  weights are not read; nothing is rewritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Literal, cast

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.layers import Layer, Weight, find_heads, unused_layers
from dcil_dsl.model.trace import Traced
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.allocate import allocate_group, bind_group, put_before
from dcil_dsl.plan.learning import average_of, rest_penalties, train_plan, weight_groups
from dcil_dsl.plan.phases import (
    check_left_out,
    check_score,
    resolve_losses,
    resolve_paths,
    resolve_phases,
    warn_of_unreached,
)
from dcil_dsl.plan.select import Selection, claim_layers
from dcil_dsl.plan.ties import Ties
from dcil_dsl.words.word import RunLength


def resolve_recipe(
    recipe: r.Recipe,
    traced: Traced,
    steps_per_epoch: int,
    report: Diagnostics | None = None,
    class_counts: tuple[int, ...] | None = None,
) -> p.Plan:
    """What the recipe means for this model, in steps.

    steps_per_epoch counts optimizer steps, class_counts the training examples of each class; None
    where there are no data. Warnings are added to `report`; errors are raised
    together as RecipeError.
    """
    report = report if report is not None else Diagnostics()
    num_epochs = int(recipe.train.epochs.value)
    num_steps = num_epochs * steps_per_epoch
    run = RunLength(steps_per_epoch, num_steps, recipe.deploy, class_counts)
    selection = Selection(traced.layers, traced.name, report)
    selection.prepare(_selectors(recipe))

    owner = claim_layers(recipe.rules, selection, report)
    prunable = _by_weight(traced.layers)
    heads = find_heads(traced.model, {weight.name: weight for _, weight in prunable})
    ties = Ties(traced, owner, _decided(prunable, owner, recipe.rules))
    groups: list[p.Group] = []
    group_of_rule: dict[int | None, int] = {}
    owned_by: dict[int | None, list[Weight]] = {}
    for _, weight in prunable:
        owned_by.setdefault(owner.get(weight.name), []).append(weight)
    for index, rule in enumerate(recipe.rules):
        owned = tuple(owned_by.get(index, ()))
        if isinstance(rule, r.PruneRule) and owned:
            stages = [rule] if rule.before is None else [rule, rule.before]
            made = [
                None
                if (tied := ties.of(stage, index, owned, report)) is None
                else allocate_group(stage, _place(rule), owned, heads, tied, run, report)
                for stage in stages
            ]
            group, *before = made
            if group is not None and None not in before:
                for first in filter(None, before):
                    group = put_before(rule, group, first, report)
                group = bind_group(rule, group, selection, report)
                group_of_rule[index] = len(groups)
                groups.append(group)
    layers = tuple(
        _layer(layer, weight, owner.get(weight.name), recipe.rules, group_of_rule)
        for layer, weight in prunable
    )
    privates = _privates(recipe, selection, owner, report)
    paths = resolve_paths(recipe, steps_per_epoch, num_steps, report)
    losses = resolve_losses(recipe, paths, run, report)
    phases = resolve_phases(recipe, losses, steps_per_epoch, num_steps, report)
    for index, rule in enumerate(recipe.rules):
        if isinstance(rule, r.PruneRule) and index in group_of_rule:
            check_score(rule, groups[group_of_rule[index]], phases, num_steps, report)
    check_left_out(recipe, tuple(groups), layers, report)
    warn_of_unreached(recipe, steps_per_epoch, num_steps, report)
    average = average_of(recipe.average, traced.model, selection, tuple(groups), run, report)
    learning = weight_groups(recipe.groups, traced.model, selection, tuple(groups), run, report)
    penalties = rest_penalties(
        recipe.penalties, traced.model, selection, layers, learning, run, report
    )
    report.stop_if_wrong()
    plan = p.Plan(
        recipe=_about(recipe),
        model=p.Model(
            name=recipe.model.name,
            classes=recipe.model.classes,
            options=dict(recipe.model.options),
        ),
        data=resolve_data(recipe.data),
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        layers=layers,
        groups=tuple(groups),
        paths=paths,
        privates=privates,
        phases=phases,
        losses=losses,
        deploy=recipe.deploy,
        train=train_plan(recipe.train, average, learning, penalties, num_epochs, run),
        teachers=tuple(
            p.TeacherPath(
                name=one.name,
                network=one.word.in_steps(run),
                size=None if one.word.follows is None else 1.0,
            )
            for one in recipe.teachers
        ),
        expect=tuple(
            p.Expectation(metric=e.metric, compare=e.compare, value=e.value) for e in recipe.expect
        ),
        opaque=tuple(
            p.OpaqueModule(
                module=path, type=type(traced.model.get_submodule(path)).__name__, reason=reason
            )
            for path, reason in traced.opaque.items()
        ),
        out_of_reach=_out_of_reach(traced),
        inputs=traced.arguments.live,
        fixed=cast("dict[str, r.Option]", traced.arguments.fixed),
        sizes={
            name: p.Size(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            for name, tensor in traced.like.items()
        },
    )
    _check_balance(recipe, plan, report)
    report.stop_if_wrong()
    return plan


def _selectors(recipe: r.Recipe) -> Iterator[ast.Selector]:
    """Every selector of a recipe."""
    named: list[r.PrivateRule | r.GroupRule | r.PenaltyRule | r.AverageRule]
    named = [*recipe.privates, *recipe.groups, *recipe.penalties]
    named += [] if recipe.average is None else [recipe.average]
    for rule in recipe.rules:
        yield rule.selector
        if isinstance(rule, r.PruneRule):
            yield from (bound.selector for bound in rule.bounds)
    yield from (one.selector for one in named if one.selector is not None)


def _check_balance(recipe: r.Recipe, plan: p.Plan, report: Diagnostics) -> None:
    """E321 where no two terms of one path are ever measured together."""
    balance = plan.train.balance
    if balance is None:
        return
    steps = range(0, plan.num_steps, balance.every.step)
    if not any(balance.num_gradients(plan.losses, step) for step in steps):
        report.add(
            "E321",
            "no path has two open loss terms at a multiple of "
            f"{count(balance.every.step, 'step')}, so "
            "that nothing is ever balanced",
            recipe.balance_span,
            help=f"measure more often: `every` of `{balance.called}`",
        )


def _out_of_reach(traced: Traced) -> tuple[p.Unprunable, ...]:
    """What could be pruned but for how it is made or that it is not used."""
    hidden = "its weight is made of other parameters at each call"
    unused = "the forward never uses it"
    found = [(x.path, x.module, hidden) for x in traced.layers if x.hides_weight]
    found += [(path, module, unused) for path, module in unused_layers(traced.model, traced.layers)]
    return tuple(
        p.Unprunable(module=path, type=type(module).__name__, reason=reason)
        for path, module, reason in found
    )


def _by_weight(layers: tuple[Layer, ...]) -> list[tuple[Layer, Weight]]:
    """Each weight that can be pruned with the first layer that uses it; costs of all its uses."""
    first: dict[str, tuple[Layer, Weight]] = {}
    for layer in layers:
        for weight in layer.prunable:
            if weight.name in first:
                owner, known = first[weight.name]
                both = (known.macs, weight.macs)
                macs = None if None in both else sum(filter(None, both))
                first[weight.name] = (owner, replace(known, macs=macs))
            else:
                first[weight.name] = (layer, weight)
    return list(first.values())


def _decided(
    prunable: list[tuple[Layer, Weight]],
    owner: dict[str, int],
    rules: tuple[r.PruneRule | r.KeepRule, ...],
) -> dict[str, str]:
    """For each weight what decides about it: a `prune`, a `keep`, or no rule."""
    words = {}
    for layer, weight in prunable:
        rule = None if weight.name not in owner else rules[owner[weight.name]]
        if isinstance(rule, r.PruneRule):
            words[weight.name] = f"`{layer.path}` is pruned by the rule at {_place(rule)}"
        else:
            words[weight.name] = f"`{layer.path}` {'is in no rule' if rule is None else 'is kept'}"
    return words


def _place(rule: r.PruneRule | r.KeepRule) -> str:
    return f"{rule.span.source.name}:{rule.span.line}"


def _layer(
    layer: Layer,
    weight: Weight,
    index: int | None,
    rules: tuple[r.PruneRule | r.KeepRule, ...],
    group_of_rule: dict[int | None, int],
) -> p.PlanLayer:
    return p.PlanLayer(
        parameter=weight.name,
        module=layer.path,
        type=layer.type,
        shape=weight.shape,
        out_axis=weight.out_axis,
        in_axis=weight.in_axis,
        groups=weight.groups,
        macs=weight.macs,
        group=group_of_rule.get(index),
        rule=None if index is None else _place(rules[index]),
        is_plain=layer.is_plain,
    )


def _privates(
    recipe: r.Recipe, selection: Selection, owner: dict[str, int], report: Diagnostics
) -> tuple[p.Private, ...]:
    """The private modules, the last statement that names one deciding how its twins start."""
    pruned = {
        name
        for layer in selection.layers
        if any(
            weight in owner and isinstance(recipe.rules[owner[weight]], r.PruneRule)
            for weight in layer.weights
        )
        for name in _around(layer)
    }
    init: dict[str, Literal["copy", "fresh"]] = {}
    for private in recipe.privates:
        chosen = selection.select(private.selector)
        stateful = [layer for layer in chosen if _has_state(layer)]
        if chosen and not stateful:
            kinds = ", ".join(sorted({layer.type for layer in chosen}))
            report.add(
                "E308",
                f"these modules have no weights or statistics to be private: {kinds}",
                private.selector.span,
            )
        for layer in stateful:
            if layer.path in pruned:
                report.add(
                    "E303",
                    f"`{layer.path}` is pruned and private",
                    private.span,
                    label="no path would train its pruned weights",
                    help=f'`keep "{layer.path}"` excludes it from pruning',
                )
            elif not layer.path:
                report.add("E308", "the whole model cannot be private", private.span)
            elif private.init == "fresh" and not hasattr(layer.module, "reset_parameters"):
                report.add(
                    "E308",
                    f"`{layer.path}` ({layer.type}) cannot start fresh: no `reset_parameters`",
                    private.span,
                    help="`init = copy` starts from the model's own weights",
                )
            else:
                init[layer.path] = private.init
    inner = {path for path in init if any(name in init for name in _containers(path))}
    for path, other in _tied(selection, init):
        report.add(
            "E308",
            f"`{path}` cannot be private: it shares a weight with `{other}`",
            recipe.privates[-1].span,
            help="untie the two, or leave both shared",
        )
    return tuple(
        p.Private(module=layer.path, init=init[layer.path])
        for layer in selection.layers
        if layer.path in init and layer.path not in inner
    )


def _around(layer: Layer) -> list[str]:
    """A layer and the modules around it, up to the one that the graph calls."""
    return [layer.path] + [
        name
        for name in _containers(layer.path)
        if name == layer.called or name.startswith(f"{layer.called}.") or not layer.called
    ]


def _containers(path: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b"."""
    names = path.split(".")
    return [".".join(names[:end]) for end in range(1, len(names))]


def _tied(selection: Selection, init: Container[str]) -> list[tuple[str, str]]:
    """(private module, layer outside of it) for each weight that the two have in common."""
    users: dict[int, list[str]] = {}
    for layer in selection.layers:
        for parameter in layer.module._parameters.values():
            users.setdefault(id(parameter), []).append(layer.path)
    return [
        (layer.path, path)
        for layer in selection.layers
        if layer.path in init
        for parameter in layer.module.parameters()
        for path in users.get(id(parameter), ())
        if path != layer.path and not path.startswith(f"{layer.path}.")
    ]


def _has_state(layer: Layer) -> bool:
    return any(True for _ in layer.module.parameters()) or any(True for _ in layer.module.buffers())


def resolve_data(data: r.RecipeData) -> p.Data:
    """The data block as the plan has it; loaders read it before there is a length of the epoch."""
    return p.Data(
        name=data.name,
        batch_size=data.batch_size or p.Data().batch_size,
        image_size=data.image_size,
        length=data.length,
        channels=data.channels,
        augment=data.augment,
    )


def _about(recipe: r.Recipe) -> p.About:
    about = recipe.about
    return p.About(
        name=about.name or "recipe",
        title=about.title,
        version=about.version,
        reference=about.reference,
        sha256=hashlib.sha256(recipe.text.encode()).hexdigest(),
        overrides=dict(recipe.overrides),
    )
