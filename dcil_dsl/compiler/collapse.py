"""Dual -> the original class: one path's weights, zeros in place, twins gone.

In:   a Dual and the path to keep.
Out:  an ordinary nn.Module of the class that was compiled, under the original's keys.
Not:  nothing is saved; the Dual is not changed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcil_dsl.compiler.privatize import remove_twins, twin_name
from dcil_dsl.compiler.weight_state import PrunedModule, remove_rule_state, remove_scores, soft_of
from dcil_dsl.masking.views import see
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.side_effects import REMEMBERED
from dcil_dsl.model.trace import WHOLE, constants
from dcil_dsl.words.registry import token


@torch.no_grad()
def collapse(dual: PrunedModule, path: str | None = None) -> nn.Module:
    """What `path` computes, as the model that was given; None is the deployed path.

    A masked path has exact zeros where its masks are False. A path that is not deployed
    brings its private modules under the original's names.
    """
    return collapse_in_place(dual, copy_module(dual.original), path)


@torch.no_grad()
def collapse_in_place(dual: PrunedModule, model: nn.Module, path: str | None = None) -> nn.Module:
    """Undo what compiling added to `model`, the Dual's own module or a copy of it."""
    plan = dual.plan
    path = path or plan.deploy
    views = {entry.name: token(entry.view) for entry in plan.paths}
    if path not in views:
        raise ValueError(f"the plan has no path {path!r}, only {', '.join(views)}")
    vars(model).pop(WHOLE, None)
    for module in model.modules():
        vars(module).pop(REMEMBERED, None)
    if path != plan.deploy:
        for entry in plan.privates:
            owner, _, name = entry.module.rpartition(".")
            twin = model.get_submodule(twin_name(entry.module, path))
            setattr(model.get_submodule(owner), name, copy_module(twin))
    remove_twins(model, plan)
    remove_scores(model, plan)
    remove_rule_state(model, plan)  # from here on parameters hold the weights, not theta
    for name in constants(model):
        del model._buffers[name]
        model._non_persistent_buffers_set.discard(name)
    for group in plan.groups:
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            module = model.get_submodule(owner)
            mask = module.get_buffer(f"{name}_mask")
            del module._buffers[f"{name}_mask"]
            weight = module.get_parameter(name)
            soft = soft_of(dual, parameter, plan)
            weight.copy_(see(weight, mask, views[path], soft))
    return model


def tensors_of(dual: PrunedModule, path: str) -> dict[str, Tensor]:
    """The weights that `path` computes with, by the original's names; its private modules'
    parameters and buffers among them. Tensors that are missing here are the original's own."""
    plan, found = dual.plan, {}
    if path != plan.deploy:
        for entry in plan.privates:
            twin = dual.get_submodule(twin_name(entry.module, path))
            for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
                found[f"{entry.module}.{name}"] = tensor
    view = next(token(entry.view) for entry in plan.paths if entry.name == path)
    for group in plan.groups:
        for name in group.parameters:
            weight: Tensor = dual.get_parameter(name)
            if group.param is not None:
                weight = group.param.weight(weight)
            seen = see(weight, dual.get_buffer(f"{name}_mask"), view, soft_of(dual, name, plan))
            found |= dict.fromkeys(_names_of(dual, name), seen)
    return found


def _names_of(dual: PrunedModule, parameter: str) -> list[str]:
    """Every name that a weight has: modules may share it."""
    weight = dual.get_parameter(parameter)
    named = dual.original.named_parameters(remove_duplicate=False)
    return [name for name, other in named if other is weight]
