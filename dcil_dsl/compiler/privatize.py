"""Give each path its own copy of every private module: a twin.

In:   an unrolled graph in which all paths call the same private modules; the model.
Out:  a graph in which the deployed path calls the original and every other path a twin.
Not:  no routing of gradients: a twin learns from its own path alone.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import fx, nn

from dcil_dsl.model.calls import apply_opaque
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.side_effects import drawn_apart
from dcil_dsl.plan.plan import Plan

MEAN = "ema__"


def twin_name(module: str, path: str) -> str:
    """ "layer1.0.bn1" on path "dense" is "layer1.0.bn1__dense"."""
    return f"{module}__{path}"


def is_within(target: str, modules: Set[str]) -> bool:
    """Whether a target is one of the modules or something inside one of them."""
    names = target.split(".")
    return any(".".join(names[:end]) in modules for end in range(1, len(names) + 1))


def privatize(graph: fx.Graph, plan: Plan) -> fx.Graph:
    """Retarget the calls of private modules to twins, in place.

        bn1_sparse = self.bn1(...)            bn1_sparse = self.bn1(...)
        bn1_dense  = self.bn1(...)     ==>    bn1_dense  = self.bn1__dense(...)

    A module that was traced into, or lies in one that stays opaque, shows as reads of its weights
    and buffers; those are retargeted alike. An opaque module gets the path of its call.
    """
    private = {entry.module for entry in plan.privates}
    for node in graph.nodes:
        path: str | None = node.meta.get("path")
        if node.target is apply_opaque and len(plan.paths) > 1:
            node.kwargs = {"path": path}
        if node.op not in ("call_module", "get_attr") or path is None or path == plan.deploy:
            continue
        assert isinstance(node.target, str)
        names = node.target.split(".")
        for end in range(1, len(names) + 1):
            module = ".".join(names[:end])
            if module in private:
                node.target = twin_name(module, path) + node.target[len(module) :]
                break
    return graph


def twin_names(plan: Plan) -> list[str]:
    """The full names of all twins."""
    return [
        twin_name(entry.module, path.name)
        for entry in plan.privates
        for path in plan.paths
        if path.name != plan.deploy
    ]


def with_twins(plan: Plan, parameter: str) -> list[str]:
    """A parameter of the model, and its twins where it lies in a private module."""
    for entry in plan.privates:
        if parameter.startswith(f"{entry.module}."):
            inside = parameter[len(entry.module) :]
            others = [path.name for path in plan.paths if path.name != plan.deploy]
            return [parameter, *(twin_name(entry.module, path) + inside for path in others)]
    return [parameter]


def add_twins(model: nn.Module, plan: Plan) -> None:
    """Register the twins next to their originals: copies, or freshly initialized.

    The plan's seed determines fresh weights; the caller's random number generators do not advance.
    """
    with drawn_apart(plan.train.seed):
        for entry in plan.privates:
            owner, _, name = entry.module.rpartition(".")
            original = model.get_submodule(entry.module)
            for path in plan.paths:
                if path.name == plan.deploy:
                    continue
                twin: Any = copy_module(original)
                if entry.init == "fresh":
                    twin.reset_parameters()
                model.get_submodule(owner).add_module(twin_name(name, path.name), twin)


def remove_twins(model: nn.Module, plan: Plan) -> None:
    """Undo add_twins."""
    for entry in plan.privates:
        owner, _, name = entry.module.rpartition(".")
        for path in plan.paths:
            if path.name != plan.deploy:
                delattr(model.get_submodule(owner), twin_name(name, path.name))


def mean_name(teacher: str) -> str:
    """The module of an average: "slow" is "ema__slow". No path has the name of a teacher, and so no
    twin has that of an average."""
    return f"{MEAN}{teacher}"


def mean_names(plan: Plan) -> frozenset[str]:
    """The modules of all averages."""
    return frozenset(mean_name(x.name) for x in plan.teachers if x.network.follows is not None)


def is_of_mean(name: str, plan: Plan) -> bool:
    """Whether a tensor is of an average, of this plan or of another one of the same model."""
    module = name.partition(".")[0]
    return module.startswith(MEAN) and module not in twin_names(plan)
