"""What happens to pruned weights beside being masked: thresholds, reserves, growth, penalties.

In:   a model or a Dual, the plan, a step.
Out:  buffers beside the weights (`<weight>_threshold`, `_scale`, `_reserve`), up to date with the
      masks; weights forgotten, stored as roots, or given the gradients of penalties.
Not:  no views (masking/views.py), no masks by scores alone (masks.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.compiler.scores import draw_scores
from dcil_dsl.masking.grow import drop_and_grow
from dcil_dsl.masking.views import largest_pruned, soft_scale
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.plan.schedule import keeps_at, reserved_at
from dcil_dsl.words.penalties import Penalty
from dcil_dsl.words.views import Soft


def has_threshold(plan: Plan) -> bool:
    return any(path.view.soft for path in plan.paths)


def buffers_of(group: Group, plan: Plan) -> tuple[str, ...]:
    """What the names of the buffers beside each weight of the group end in, masks excluded."""
    soft = ("threshold", "scale") if has_threshold(plan) else ()
    return soft + (("reserve",) if group.reserve else ())


@torch.no_grad()
def add_dynamics(model: nn.Module, plan: Plan) -> None:
    """Register the buffers, in place, as they are while nothing is pruned; take the roots."""
    axes = _filter_axes(plan)
    for group in plan.groups:
        for parameter in group.parameters:
            owner, weight = _owner(model, parameter), model.get_parameter(parameter)
            name, mask = parameter.rpartition(".")[2], torch.ones_like(weight, dtype=torch.bool)
            starts = {
                "threshold": lambda: weight.new_zeros(()),
                "scale": lambda: soft_scale(weight, mask, axes[parameter]),
                "reserve": lambda: ~mask,
            }
            for kind in buffers_of(group, plan):
                owner.register_buffer(f"{name}_{kind}", starts[kind]().detach())
            if group.param is not None:
                weight.copy_(group.param.stored(weight))


@torch.no_grad()
def remove_dynamics(model: nn.Module, plan: Plan) -> None:
    """What add_dynamics did, undone."""
    for group in plan.groups:
        for parameter in group.parameters:
            owner, name = _owner(model, parameter), parameter.rpartition(".")[2]
            for kind in buffers_of(group, plan):
                del owner._buffers[f"{name}_{kind}"]
            if group.param is not None:
                weight = model.get_parameter(parameter)
                weight.copy_(group.param.weight(weight))


def soft_of(module: nn.Module, parameter: str, plan: Plan) -> Soft | None:
    if not has_threshold(plan):
        return None
    return Soft(
        module.get_buffer(f"{parameter}_threshold"), module.get_buffer(f"{parameter}_scale")
    )


@torch.no_grad()
def grown_masks(dual: nn.Module, group: Group, scores: list[Tensor], step: int) -> list[Tensor]:
    """The masks of a group that drops and grows; the first ones, at step 0, are drawn by chance."""
    if step == 0:
        return make_masks(group, draw_scores(dual, group, 0), 0, placement=dual.placement)
    regrow, keeps = group.regrow, keeps_at(group, step)
    share = regrow.share_at(step)
    masks, across = masks_of(dual, group), dual.placement.across
    wanted = draw_scores(dual, group, step)
    if regrow.gradient_path is not None:
        wanted = [dual.get_buffer(f"{name}_score") for name in group.parameters]
    if group.one_budget:
        count = int(share * keeps[0])
        return drop_and_grow(masks, scores, wanted, keeps[0], count, list(group.floors), across)
    return [
        drop_and_grow([mask], [score], [want], keep, int(share * keep), [floor], across)[0]
        for mask, score, want, keep, floor in zip(
            masks, scores, wanted, keeps, group.floors, strict=True
        )
    ]


@torch.no_grad()
def follow_masks(dual: nn.Module, group: Group, scores: list[Tensor], step: int) -> None:
    """Bring everything that depends on the group's masks up to date with them."""
    weights = [dual.get_parameter(name) for name in group.parameters]
    masks = masks_of(dual, group)
    if group.reserve:
        # The best of all the weights that the masks and the reserve have room for.
        keeps, ranked = reserved_at(group, step), _ranked(masks, scores)
        wide = make_masks(group, ranked, step, keeps=keeps, placement=dual.placement)
        for name, both, mask in zip(group.parameters, wide, masks, strict=True):
            dual.get_buffer(f"{name}_reserve").copy_(both & ~mask)
    if group.forget:
        for weight, mask in zip(weights, masks, strict=True):
            weight.masked_fill_(~mask, 0.0)
    if has_threshold(dual.plan):
        seen = weights
        if group.param is not None:
            seen = [group.param.weight(weight) for weight in weights]
        largest = [largest_pruned(w, mask) for w, mask in zip(seen, masks, strict=True)]
        across = dual.placement.across
        if across is not None:
            largest = list(across.gather(torch.stack(largest)).amax(0))
        if group.one_budget:
            largest = [torch.stack(largest).amax()] * len(largest)
        axes = _filter_axes(dual.plan)
        for name, w, mask, size in zip(group.parameters, seen, masks, largest, strict=True):
            dual.get_buffer(f"{name}_threshold").copy_(size)
            dual.get_buffer(f"{name}_scale").copy_(soft_scale(w, mask, axes[name], across))


@torch.no_grad()
def add_penalties(dual: nn.Module, step: int) -> None:
    """Add the gradients of the plan's penalties to those of the weights, whose own must be there.

    They are of the stored numbers, theta where the rule has `param = power`.
    """
    for group in dual.plan.groups:
        for penalty in group.penalties:
            weight = penalty.weight_at(step, dual.plan.num_steps)
            if not weight:
                continue
            norms = _norms_of_parts(dual, group, penalty)
            for i, name in enumerate(group.parameters):
                w, part, own = _part_of(dual, name, penalty)
                more = {} if norms is None else {"norm": norms[i]}
                own = penalty.gradient(own, **more).where(part, w.new_zeros(()))
                w.grad = weight * own if w.grad is None else w.grad.add_(own, alpha=weight)


def _part_of(dual: nn.Module, name: str, penalty: Penalty) -> tuple[Tensor, Tensor, Tensor]:
    """The weight, where the penalty acts on it, and the weight there, else zero."""
    w, mask = dual.get_parameter(name), dual.get_buffer(f"{name}_mask")
    part = {"kept": mask, "pruned": ~mask}.get(penalty.part)
    if part is None:
        part = dual.get_buffer(f"{name}_reserve")
    return w, part, torch.where(part, w, w.new_zeros(()))


def _norms_of_parts(dual: nn.Module, group: Group, penalty: Penalty) -> Tensor | None:
    """Of each weight of which this process has some rows, the norm over the rows of all, in one
    exchange; None where it has all of them, or none is asked for."""
    if dual.placement.is_whole or not penalty.needs_norm:
        return None
    parts = (_part_of(dual, name, penalty)[2] for name in group.parameters)
    norms = [part.to(torch.promote_types(part.dtype, torch.float32)).norm() for part in parts]
    return dual.placement.totals([torch.stack(norms).square()])[0].sqrt()


def masks_of(dual: nn.Module, group: Group) -> list[Tensor]:
    return [dual.get_buffer(f"{name}_mask") for name in group.parameters]


def _ranked(masks: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
    return [
        torch.where(mask, torch.inf, score.double())
        for mask, score in zip(masks, scores, strict=True)
    ]


def _owner(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])


def _filter_axes(plan: Plan) -> dict[str, int]:
    return {layer.parameter: layer.out_axis for layer in plan.layers}
