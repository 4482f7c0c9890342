"""The networks that teach: built, compared with the model on an example, counted.

In:   a recipe and its Plan; the model and an example; networks that the caller gives.
Out:  the Plan with the digest and the size of each network; the networks by the names of their
      teachers. RecipeError E331 at the line of a teacher that cannot be, or does not fit.
Not:  they do not run in training here (compiler/teachers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcil_dsl.diagnostics import Diagnostics, InputError
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang.recipe import LossRule, Recipe, TeacherRule
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.digest import digest
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.tensors.outputs import like_student
from dcil_dsl.words.views import SOURCES, TrainedNetwork
from dcil_dsl.zoo.spec import build_model
from dcil_dsl.zoo.teacher import build_network

Networks = dict[str, nn.Module]
Note = Callable[[str], None]


def open_teachers(
    recipe: Recipe,
    plan: Plan,
    model: nn.Module,
    example: Inputs | None,
    given: Mapping[str, nn.Module | str] | None = None,
    note: Note | None = None,
) -> tuple[Plan, Networks]:
    """The plan with what it says of networks, and the networks.

    example  one batch; None: neither their outputs nor their arithmetic are compared
    given    the networks of `network()`, by name; they are not changed
    """
    built = {name: _built(name, one) for name, one in (given or {}).items()}
    rules = {x.name: x for x in recipe.teachers if isinstance(x.word, TrainedNetwork)}
    for name in built:
        if name not in rules:
            help = did_you_mean(name, rules) or "a recipe declares it: `path big = network()`"
            raise InputError(f"the recipe has no teacher `{name}` that is a network", help=help)
    report = Diagnostics()
    networks: Networks = {}
    for name, rule in rules.items():
        found = _opened(rule, built.get(name), report, note)
        if found is not None:
            networks[name] = found
    report.stop_if_wrong()
    sizes = dict[str, float | None]()
    if example is not None and networks:
        sizes = _compared(recipe, model, networks, example, report)
        report.stop_if_wrong()
    digests = {name: digest(network.state_dict()) for name, network in networks.items()}
    teachers = tuple(
        one.model_copy(
            update={
                "network": one.network.model_copy(update={"digest": digests[one.name]}),
                "size": sizes.get(one.name),
            }
        )
        if one.name in networks
        else one
        for one in plan.teachers
    )
    return plan.model_copy(update={"teachers": teachers}), networks


def names_all(recipe: Recipe) -> bool:
    """Whether the recipe says of each network where it is; others are given to a training run."""
    words = [rule.word for rule in recipe.teachers]
    return all(word.source is not None for word in words if isinstance(word, TrainedNetwork))


def networks_again(plan: Plan, given: Mapping[str, nn.Module] | None) -> Networks:
    """The networks of a plan: those given, others built anew, from the current folder."""
    networks = dict(given or {})
    for teacher in plan.teachers:
        word = teacher.network
        if (
            isinstance(word, TrainedNetwork)
            and word.source is not None
            and teacher.name not in networks
        ):
            networks[teacher.name] = build_network(word, Path())[0]
    return networks


def _built(name: str, given: nn.Module | str) -> nn.Module:
    """The network, or what a callable of the caller's own code returns."""
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str):
        raise InputError(f"the teacher `{name}` is of type {type(given).__name__}, not a module")
    if given.rpartition(":")[0] in SOURCES:
        raise InputError(
            f"--teacher {name}={given}: it would have random weights",
            help=f'name it in the recipe: `path {name} = network("{given}", weights="FILE")`',
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(given)


def _opened(
    rule: TeacherRule, given: nn.Module | None, report: Diagnostics, note: Note | None
) -> nn.Module | None:
    word = rule.word
    assert isinstance(word, TrainedNetwork)
    if given is not None and word.source is not None:
        report.add(
            "E331",
            f"the recipe names the network of `{rule.name}`, and one is given",
            rule.span,
            help="`network()` takes the given one",
        )
    elif given is not None:
        return copy_module(given).requires_grad_(False).eval()
    elif word.source is None:
        report.add(
            "E331",
            f"the network of `{rule.name}` is not given",
            rule.span,
            help=f"`teachers={{{rule.name!r}: network}}` in Python; or name it here, "
            '`network("torchvision:resnet50", weights="...")`',
        )
    else:
        folder = rule.span.source.folder or Path()
        try:
            network, notes = build_network(word, folder)
        except InputError as error:
            report.add("E331", error.message, rule.span, help=error.help)
            return None
        if note is not None:
            for line in notes:
                note(f"teacher `{rule.name}`: {line}")
        return network.requires_grad_(False).eval()
    return None


def _compared(
    recipe: Recipe, model: nn.Module, networks: Networks, example: Inputs, report: Diagnostics
) -> dict[str, float | None]:
    """The arithmetic of each network over the model's; E331 where outputs do not fit."""
    plain = copy_module(model).eval()
    device = next((weight.device for weight in plain.parameters()), torch.device("cpu"))
    try:
        own, own_flops = _run(plain, example.to(device))
    except Exception:  # the model's own error, which whoever prepares it reports
        return {}
    outputs, sizes = {path.name: own for path in recipe.paths}, dict[str, float | None]()
    spans = {rule.name: rule.span for rule in recipe.teachers}
    for name, network in networks.items():
        given = example.to(device)
        before = [tensor.clone() for tensor in given.tensors()]
        try:
            outputs[name], flops = _run(network.to(device), given)
        except Exception as error:  # a network may refuse its inputs with any error
            first = " ".join(str(error).split())[:200]
            report.add(
                "E331",
                f"the network of `{name}` does not take what the model is given",
                spans[name],
                label=f"{type(error).__name__}: {first}",
                help="a teacher is called with the model's own inputs",
            )
            continue
        if any(not torch.equal(a, b) for a, b in zip(before, given.tensors(), strict=True)):
            report.add("E331", f"the network of `{name}` changes its inputs in place", spans[name])
        sizes[name] = flops / own_flops if own_flops else None
    for loss in recipe.losses:
        for name in set(loss.term.paths) & set(networks) & set(outputs):
            _fits(loss, name, outputs, report)
    return sizes


def _fits(loss: LossRule, name: str, outputs: Mapping[str, Any], report: Diagnostics) -> None:
    try:
        read = loss.term.compared({path: outputs[path] for path in loss.term.paths})
        like_student(read[loss.term.paths[0]], read[name])
    except InputError as error:
        report.add(
            "E331",
            f"`{name}` does not fit `{loss.term.called}`: {error.message}",
            loss.span,
            help=error.help,
        )


@torch.no_grad()
def _run(model: nn.Module, example: Inputs) -> tuple[Any, int]:
    """What it returns, and the floating point operations of its products."""
    with FlopCounterMode(display=False) as counter:
        output = model(*example.args, **example.kwargs)
    return output, int(counter.get_total_flops())
