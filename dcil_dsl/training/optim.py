"""The optimiser of a plan, and its learning rate as a pure function of the step.

In:   the optimiser's part of a Plan and the parameters by name, in the order to keep.
Out:  a torch.optim optimiser over one list; the rate of a step; its state by parameter name.
Not:  no scheduler object: a rate that is a function of the step cannot drift from it on resume.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.extend.word import LARGEST
from dcil_dsl.plan.plan import SGD, AdamW, Plan
from dcil_dsl.training.metrics import Dual

# Not on a CPU, where the fused step neither checks that weight and gradient lie in memory alike
# nor is faster for channels_last weights.
FUSED_ON = ("cuda",)
ENTRIES = {
    torch.optim.SGD: ("momentum_buffer",), torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}  # fmt: skip


def make_optimizer(
    spec: SGD | AdamW, named_parameters: Iterable[tuple[str, Parameter]]
) -> torch.optim.Optimizer:
    """SGD or AdamW over all the parameters alike: weight decay too acts on every one of them.

    The names go along, so that a state can be saved by name.
    """
    named = list(named_parameters)
    fused = all(p.device.type in FUSED_ON and p.is_floating_point() for _, p in named)
    if isinstance(spec, AdamW):
        return torch.optim.AdamW(
            named, lr=spec.lr, betas=spec.betas, eps=spec.eps,
            weight_decay=spec.weight_decay, fused=fused,
        )  # fmt: skip
    optimizer = torch.optim.SGD(
        named, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov,
        weight_decay=spec.weight_decay, fused=fused,
    )  # fmt: skip
    if spec.momentum:
        # Zeros are what a missing buffer means (momentum * 0 + g = g), but fused SGD takes the
        # buffers to be all there or all missing, and a path that starts late has its own.
        for _, parameter in named:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def entries_of(spec: SGD | AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimiser remembers of a parameter, by name, with zeros as they are at first."""
    if isinstance(spec, AdamW):
        zeros = torch.zeros_like(parameter)
        counts_on = parameter.device if parameter.device.type in FUSED_ON else "cpu"
        step = torch.zeros((), device=counts_on)
        return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros}
    return {"momentum_buffer": torch.zeros_like(parameter)} if spec.momentum else {}


def check_rate(plan: Plan) -> None:
    """InputError where the rate grows, step by step, beyond what float32 holds."""
    for step in (0, *plan.train.rate.at):
        try:
            is_held = rate_at(plan, step) <= LARGEST
        except OverflowError:
            is_held = False
        if not is_held:
            raise InputError(
                f"the learning rate is beyond what float32 holds at step {step:,}",
                help="lower `gamma`, or `lr`, in the recipe's `train`",
            )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def rate_at(plan: Plan, step: int) -> float:
    """The learning rate of the update number `step`, counted from 0.

        step < warmup   warmup_from + (lr - warmup_from) * step / warmup
        constant        lr
        multistep       lr * gamma^(number of `at` <= step)
        cosine          final + (lr - final) * (1 + cos(pi * u)) / 2, where u goes from 0 at the
                        end of the warm-up to 1 at the last update
    """
    rate, lr = plan.train.rate, plan.train.optimizer.lr
    if step < rate.warmup:
        return rate.warmup_from + (lr - rate.warmup_from) * step / rate.warmup
    if rate.kind == "constant":
        return lr
    if rate.kind == "multistep":
        return lr * rate.gamma ** bisect_right(sorted(rate.at), step)
    u = (step - rate.warmup) / max(plan.num_steps - 1 - rate.warmup, 1)
    return rate.final + (lr - rate.final) * (1 + math.cos(math.pi * min(u, 1.0))) / 2


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as tensors under "<parameter>/<entry>", "conv1.weight/momentum_buffer"."""
    return {
        f"{name}/{entry}": value
        for name, parameter in _by_name(optimizer)
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def forget_pruned(optimizer: torch.optim.Optimizer, dual: Dual) -> None:
    """What the optimiser remembers of weights under `forget` that are pruned becomes zero.

    Else momentum would move them away from the zero that they are, and would still be there when
    they come back.
    """
    masks = {
        id(dual.get_parameter(name)): dual.get_buffer(f"{name}_mask")
        for group in dual.plan.groups
        if group.forget
        for name in group.parameters
    }
    for parameter, entries in optimizer.state.items():
        mask = masks.get(id(parameter))
        for value in entries.values() if mask is not None else ():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.masked_fill_(~mask, 0.0)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what optimizer_state gave.

    Raises KeyError for a parameter or an entry that it does not have, ValueError for one of another
    shape or type.
    """
    parameters = dict(_by_name(optimizer))
    entries = ENTRIES[type(optimizer)]
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if entry not in entries:
            raise KeyError(key)
        shape = torch.Size() if entry == "step" else parameter.shape
        if value.shape != shape or not value.is_floating_point():
            told = f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
            raise ValueError(f"`{key}` is {told} and not of the shape {tuple(shape)}")
        if entry == "step":  # of Adam; the fused one counts on the device
            device = parameter.device if _is_fused(optimizer) else "cpu"
            place = torch.empty_like(value, device=device)
        else:  # lies in memory as the parameter does, or the fused step leaves its fast path
            place = torch.empty_like(parameter)
        optimizer.state[parameter][entry] = place.copy_(value)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0]["fused"])


def _by_name(optimizer: torch.optim.Optimizer) -> list[tuple[str, Parameter]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["param_names"], group["params"], strict=True)
    ]
