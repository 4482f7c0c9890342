"""The optimizer of a plan, and its learning rate as a pure function of the step.

In:   the optimizer of a Plan, and the parameters by name in their order.
Out:  a torch.optim optimizer; its rate, set; its state by parameter name.
Not:  no scheduler object: a rate that is a function of the step cannot drift from it on resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.plan.plan import Plan
from dcil_dsl.words.optimizers import Lamb, Optimizer
from dcil_dsl.words.weight_groups import WeightGroup, divided
from dcil_dsl.words.word import LARGEST


def make_optimizer(
    word: Optimizer,
    named_parameters: Iterable[tuple[str, Parameter]],
    groups: Sequence[WeightGroup] = (),
) -> torch.optim.Optimizer:
    """An optimizer of named parameters, so that its state can be saved by name. Of a dual graph:
    Plan.make_optimizer."""
    return word.make(divided(groups, named_parameters))


def check_rate(plan: Plan) -> None:
    """InputError where the rate exceeds the range of float32 at some step."""
    for step in (0, *plan.train.rate.turns):
        try:
            is_held = plan.lr_at(step) <= LARGEST
        except OverflowError:
            is_held = False
        if not is_held:
            raise InputError(
                f"the learning rate is beyond what float32 holds at step {step:,}",
                help="lower `gamma`, or `lr`, in the recipe's `train`",
            )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on, times the scale of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as tensors under "<parameter>/<entry>", "conv1.weight/momentum_buffer"."""
    state = {
        f"{name}/{entry}": value
        for name, parameter in _by_name(optimizer)
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    # timm's Lamb counts steps in the group, and has a group for each parameter.
    return state | {
        f"{group['param_names'][0]}/step": group["step"]
        for group in optimizer.param_groups
        if "step" in group
    }


@torch.no_grad()
def forget_state(optimizer: torch.optim.Optimizer, dual: Dual) -> None:
    """Zero the optimizer's state of all weights where the step that was begun is one of `reset`,
    else of pruned weights under `forget`.

    Otherwise momentum would move the pruned weights away from zero, and would act again when they
    return. Zeros are what every optimizer starts with.
    """
    if dual.resets:
        for entries in optimizer.state.values():
            for value in entries.values():
                if isinstance(value, Tensor):
                    value.zero_()
        for group in optimizer.param_groups:
            group.pop("step", None)  # of timm's Lamb
        return
    masks = {
        id(dual.get_parameter(name)): dual.get_buffer(f"{name}_mask")
        for group in dual.plan.groups
        if group.forget
        for name in group.parameters
    }
    for parameter, entries in optimizer.state.items():
        mask = masks.get(id(parameter))
        if mask is None:
            continue
        for value in entries.values():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.masked_fill_(~mask, 0.0)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor], word: Optimizer
) -> None:
    """Load the tensors of optimizer_state into the optimizer that `word` made.

    Raises KeyError for a parameter or an entry that it does not have, ValueError for one of another
    shape or type.
    """
    parameters = dict(_by_name(optimizer))
    group_of = {name: g for g in optimizer.param_groups for name in g["param_names"]}
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        expected = word.entries(parameter)
        if entry not in expected:
            raise KeyError(key)
        shape = expected[entry].shape
        if value.shape != shape or not value.is_floating_point():
            told = f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
            raise ValueError(f"`{key}` is {told} and not of the shape {tuple(shape)}")
        if entry == "step" and isinstance(word, Lamb):
            group_of[name]["step"] = value.detach().clone().cpu()
            continue
        if entry == "step":  # of Adam; the fused one counts on the device
            device = parameter.device if _is_fused(optimizer) else "cpu"
            place = torch.empty_like(value, device=device)
        else:  # lies in memory as the parameter does, or the fused step leaves its fast path
            place = torch.empty_like(parameter)
        optimizer.state[parameter][entry] = place.copy_(value)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))


def _by_name(optimizer: torch.optim.Optimizer) -> list[tuple[str, Parameter]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["param_names"], group["params"], strict=True)
    ]
