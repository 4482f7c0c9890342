"""Dual -> the original class: one path's weights, zeros in place, twins gone.

In:   a Dual and the path to keep.
Out:  an ordinary nn.Module of the class that was compiled, under the original's keys.
Not:  nothing is saved; the Dual is not changed.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.compiler.dynamics import remove_dynamics, soft_of
from dcil_dsl.compiler.privatize import remove_twins, twin_name
from dcil_dsl.compiler.scores import remove_scores
from dcil_dsl.masking.path_state import REMEMBERED
from dcil_dsl.masking.views import see
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.trace import WHOLE, constants
from dcil_dsl.words.record import token


@torch.no_grad()
def export(dual: Dual, path: str | None = None) -> nn.Module:
    """What `path` computes, as the model that was given; None is the deployed path.

    A masked path has exact zeros where its masks are False. A path that is not deployed
    brings its private modules under the original's names.
    """
    plan = dual.plan
    path = path or plan.deploy
    views = {entry.name: token(entry.view) for entry in plan.paths}
    if path not in views:
        raise ValueError(f"the plan has no path {path!r}, only {', '.join(views)}")
    model = copy_module(cast(nn.Module, dual.original))
    vars(model).pop(WHOLE, None)
    for own in model.modules():
        vars(own).pop(REMEMBERED, None)
    if path != plan.deploy:
        for entry in plan.privates:
            owner, _, name = entry.module.rpartition(".")
            twin = model.get_submodule(twin_name(entry.module, path))
            setattr(model.get_submodule(owner), name, copy_module(twin))
    remove_twins(model, plan)
    remove_scores(model, plan)
    remove_dynamics(model, plan)  # from here on weights are what the views are of
    for name in constants(model):
        del model._buffers[name]
        model._non_persistent_buffers_set.discard(name)
    for group in plan.groups:
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            module = model.get_submodule(owner)
            mask = module._buffers.pop(f"{name}_mask")
            assert mask is not None, "the compiler gives each pruned weight its mask"
            weight = module.get_parameter(name)
            soft = soft_of(dual, parameter, plan)
            weight.copy_(see(weight, mask, views[path], soft))
    return model
