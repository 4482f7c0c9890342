"""Run the networks that only teach, next to the graph of the paths.

In:   a Dual; the networks of its plan's `network` teachers.
Out:  the outputs of the teachers of a phase; the averages of `ema`, one step further.
Not:  no network is built (zoo/teacher.py). A teacher is called as the model is, in evaluation mode
      and without gradients; it shares no tensor with the model.

An average is a module of the Dual, so that its state dict has it, and none of the model: a plain
copy of it, whose tensors are the means, and the step up to which they are. The weights of a
`network` are in no state dict; the plan has their digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.compiler.collapse import tensors_of
from dcil_dsl.compiler.privatize import mean_name, mean_names
from dcil_dsl.compiler.weight_state import PrunedModule
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.digest import digest
from dcil_dsl.plan.plan import Plan, TeacherPath
from dcil_dsl.words.views import PathAverage, TrainedNetwork

NOT_BEGUN = -1


class Mean(nn.Module):
    """The average of a path. step: the step whose weights were added last, or NOT_BEGUN."""

    step: Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = still(network)
        self.register_buffer("step", torch.tensor(NOT_BEGUN))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)


def still(network: nn.Module) -> nn.Module:
    """In evaluation mode, and with no weight that learns."""
    return network.requires_grad_(False).eval()


def make_means(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The averages by the names of their modules, of a model to which nothing was added yet."""
    return {name: Mean(copy_module(model)) for name in mean_names(plan)}


def networks_of(plan: Plan) -> tuple[TeacherPath, ...]:
    """The teachers that are networks of their own."""
    return tuple(teacher for teacher in plan.teachers if teacher.network.follows is None)


def checked_networks(plan: Plan, networks: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """The same. InputError for a name that is no `network` of the plan, or other weights."""
    known = {teacher.name: teacher.network for teacher in networks_of(plan)}
    for name, network in networks.items():
        word = known.get(name)
        if not isinstance(word, TrainedNetwork):
            help = did_you_mean(name, known) or "a recipe declares it: `path big = network()`"
            raise InputError(f"the recipe has no teacher `{name}` that is a network", help=help)
        if word.digest not in (None, digest(network.state_dict())):
            raise InputError(
                f"the teacher `{name}` is another network than the one the plan was made with",
                help="its weights have changed: resolve the recipe again, or give the first ones",
            )
    return networks


@torch.no_grad()
def teach(modules: Iterable[tuple[str, nn.Module]], args: Any, kwargs: Any) -> dict[str, Any]:
    """{teacher: output} of a call of the model."""
    return {name: module(*args, **kwargs) for name, module in modules}


def missing_network(name: str) -> InputError:
    return InputError(
        f"the network of the teacher `{name}` is missing",
        help=f"teachers={{{name!r}: network}} of what compiles it, or dual.teach(...)",
    )


@torch.no_grad()
def set_step(dual: PrunedModule, step: int) -> None:
    """Let the averages that have begun go on at `step`."""
    for name in mean_names(dual.plan):
        counted = dual.get_buffer(f"{name}.step")
        counted.copy_(torch.where(counted >= 0, step - 1, counted))


@torch.no_grad()
def follow(dual: PrunedModule, step: int, last: dict[str, int]) -> None:
    """Add what paths compute with at `step` to their averages, once.

    last  by average, the step that was added last, as far as it is known: reading it from a device
          would make the host wait
    """
    for teacher in dual.plan.teachers:
        word = teacher.network
        if not isinstance(word, PathAverage):
            continue
        mean = dual.get_submodule(mean_name(teacher.name))
        assert isinstance(mean, Mean)
        before = last.get(teacher.name)
        before = int(mean.step) if before is None else before
        if before < step:
            _add(dual, word, mean.network, is_first=before == NOT_BEGUN)
            mean.step.fill_(step)
        last[teacher.name] = max(before, step)


def _add(dual: PrunedModule, word: PathAverage, network: nn.Module, is_first: bool) -> None:
    views = tensors_of(dual, word.path)
    own = {**dict(dual.original.named_parameters()), **dict(dual.original.named_buffers())}
    means, seen = [], []
    for name, mean in [*network.named_parameters(), *network.named_buffers()]:
        value = views.get(name, own.get(name))
        if value is None:  # a constant of tracing, which no path changes
            continue
        if is_first or not mean.is_floating_point():
            mean.copy_(value)
        else:
            means.append(mean)
            seen.append(value)
    if means:
        word.average(means, seen)
