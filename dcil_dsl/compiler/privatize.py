"""Give each path a private module of its own.

In:   an unrolled graph in which all paths call the same private modules; the model.
Out:  a graph in which the deployed path calls the original and each other path a twin.
Not:  gradients need no routing here: a twin learns from its own path alone.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from dcil_dsl.plan.plan import Plan


def twin_name(module: str, path: str) -> str:
    """"layer1.0.bn1" on path "dense" is "layer1.0.bn1__dense"."""
    return f"{module}__{path}"


def privatize(graph: fx.Graph, plan: Plan) -> fx.Graph:
    """Retarget the calls of private modules, in place.

        bn1_sparse = self.bn1(...)            bn1_sparse = self.bn1(...)
        bn1_dense  = self.bn1(...)     ==>    bn1_dense  = self.bn1__dense(...)

    A module that was traced into shows as reads of its weights; those are retargeted alike.
    """
    for node in graph.nodes:
        path = node.meta.get("path")
        if node.op not in ("call_module", "get_attr") or path in (None, plan.deploy):
            continue
        for entry in plan.privates:
            if node.target == entry.module or node.target.startswith(f"{entry.module}."):
                rest = node.target[len(entry.module) :]
                node.target = twin_name(entry.module, path) + rest
    return graph


def add_twins(model: nn.Module, plan: Plan) -> None:
    """Register the twins beside their originals: copies, or freshly initialised.

    Fresh weights come from a generator of their own, seeded by the plan, so that a model
    compiled twice is twice the same and the caller's random numbers stay as they were.
    """
    with torch.random.fork_rng():
        torch.manual_seed(plan.train.seed)
        for entry in plan.privates:
            owner, _, name = entry.module.rpartition(".")
            original = model.get_submodule(entry.module)
            for path in plan.paths:
                if path.name == plan.deploy:
                    continue
                twin = copy.deepcopy(original)
                if entry.init == "fresh":
                    twin.reset_parameters()
                model.get_submodule(owner).add_module(twin_name(name, path.name), twin)


def remove_twins(model: nn.Module, plan: Plan) -> None:
    """What add_twins added, taken away."""
    for entry in plan.privates:
        owner, _, name = entry.module.rpartition(".")
        for path in plan.paths:
            if path.name != plan.deploy:
                delattr(model.get_submodule(owner), twin_name(name, path.name))
