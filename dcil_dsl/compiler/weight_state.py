"""Pruned weights and their state: masks, scores, thresholds, reserves.

In:   a model, the plan, a step.
Out:  PrunedModule, of which each Dual is one; buffers next to each weight (`<weight>_mask`,
      `_score`, `_threshold`, `_scale`, `_reserve`), up to date with the step and its masks; weights
      that `forget` sets to zero or that `param` stores as theta; gradients with those of penalties.
Not:  no formulas of scores (words/scores.py) or views (masking/views.py). Gradients are added to
      scores in the backward pass (masking/split.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcil_dsl.compiler.masks import make_masks
from dcil_dsl.compiler.privatize import is_within, mean_names, twin_names, with_twins
from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.placement import Placement
from dcil_dsl.masking.score import score_weights
from dcil_dsl.masking.select import drop_and_grow
from dcil_dsl.masking.views import largest_pruned, soft_scale
from dcil_dsl.plan.group import BufferedScore
from dcil_dsl.plan.plan import Group, Phase, Plan
from dcil_dsl.plan.records import RestPenalty
from dcil_dsl.plan.schedule import keeps_at, reserved_at
from dcil_dsl.words.losses import Penalty
from dcil_dsl.words.scores import Draw, Magnitude, uniform
from dcil_dsl.words.views import Soft

UNSCALE = "loss_unscale"  # one over the loss scale of fp16


class PrunedModule(fx.GraphModule):
    """A module whose weights have masks and state, all in its buffers.

    original   the model, whose tables of weights and modules this module uses
    placement  the rows of the weights that this process has
    """

    original: nn.Module
    plan: Plan
    placement: Placement

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by the names of their weights, in the order of the plan's groups."""
        return {
            name: self.get_buffer(f"{name}_mask")
            for group in self.plan.groups
            for name in group.parameters
        }

    @property
    def score_state(self) -> dict[str, Tensor]:
        """The scores that are summed or averaged over steps, by the names of their weights.

        They are linear in what each backward pass adds, so the score of all processes is the mean
        of theirs, to be computed before the masks. Sharded weights have the gradient of all
        processes, and so their scores are the same without a mean.
        """
        return {
            name: self.get_buffer(f"{name}_score")
            for group, _ in scored_groups(self.plan)
            for name in group.parameters
        }

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The original's parameters in the original's order, then the twins."""
        twins, means = frozenset(twin_names(self.plan)), mean_names(self.plan)
        own = [named for named in self.named_parameters() if not is_within(named[0], means)]
        # A stable sort: both keep their order.
        return sorted(own, key=lambda named: is_within(named[0], twins))


# -- scores --------------------------------------------------------------------------------------


def scored_groups(plan: Plan) -> tuple[tuple[Group, BufferedScore], ...]:
    """The groups whose score needs a buffer, and that score."""
    pairs = ((group, group.buffered_score) for group in plan.groups)
    return tuple((group, score) for group, score in pairs if score is not None)


def has_gradient_scores(plan: Plan) -> bool:
    """Whether a score takes the gradient of a path."""
    return any(score.path is not None for _, score in scored_groups(plan))


def add_scores(model: nn.Module, plan: Plan) -> None:
    """Register the buffers of scores, zeros of float32, in the model.

    InputError where a score needs the gradient of a weight that does not require one.
    """
    for group, score in scored_groups(plan):
        for parameter in group.parameters:
            weight = model.get_parameter(parameter)
            if score.path is not None and not weight.requires_grad:
                raise InputError(
                    f"`{parameter}` has the score {score.score.called} but no gradient: its "
                    "requires_grad is False",
                    help="`keep` it, or prune it with `score = magnitude`",
                )
            total = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
            owner, name = _owner(model, parameter)
            owner.register_buffer(f"{name}_score", total)
    if has_gradient_scores(plan):
        device = next(model.parameters()).device
        model.register_buffer(UNSCALE, torch.ones((), device=device), persistent=False)


def remove_scores(model: nn.Module, plan: Plan) -> None:
    """Undo add_scores."""
    for group, _ in scored_groups(plan):
        for parameter in group.parameters:
            owner, name = _owner(model, parameter)
            del owner._buffers[f"{name}_score"]
    if has_gradient_scores(plan):
        del model._buffers[UNSCALE]
        model._non_persistent_buffers_set.discard(UNSCALE)


@torch.no_grad()
def begin_scores(dual: PrunedModule, phase: Phase, loss_scale: Tensor | None) -> None:
    """Decay the moving averages of scores at the beginning of a step.

    The average of a gradient's score does not change while its path does not run. The average of
    a magnitude takes in the weight at the beginning of the step:  S <- a S + (1 - a) |w|.
    """
    for group, score in scored_groups(dual.plan):
        decay, path = score.average, score.path
        if decay is None or (path is not None and path not in phase.paths):
            continue
        if group.regrow is not None:
            continue  # clear_growth clears it after the masks have read it
        for name in group.parameters:
            total = dual.get_buffer(f"{name}_score")
            if path is not None:
                total.mul_(decay)
            else:
                now = score_weights(dual.get_parameter(name), group.score, draw_of(dual, name, 0))
                total.lerp_(now.to(total.dtype), 1 - decay)
    if has_gradient_scores(dual.plan):
        unscale = dual.get_buffer(UNSCALE)
        unscale.fill_(1.0) if loss_scale is None else unscale.copy_(1.0 / loss_scale)


@torch.no_grad()
def clear_growth(dual: PrunedModule, phase: Phase) -> None:
    """Clear the scores by which groups regrow: they hold the gradient of the last step alone."""
    for group, _ in scored_groups(dual.plan):
        if group.regrow is not None and group.regrow.gradient_path in phase.paths:
            for name in group.parameters:
                dual.get_buffer(f"{name}_score").zero_()


@torch.no_grad()
def scores_of(dual: PrunedModule, group: Group, step: int) -> list[Tensor]:
    """The scores of the group's weights for its masks at `step`.

    While every score of the group is zero, as before the first gradient, magnitude replaces it.
    """
    weights = [dual.get_parameter(name) for name in group.parameters]
    if not group.score.has_state:
        draws = [draw_of(dual, name, step) for name in group.parameters]
        pairs = zip(weights, draws, strict=True)
        return [score_weights(w, group.score, draw) for w, draw in pairs]
    totals = [dual.get_buffer(f"{name}_score") for name in group.parameters]
    moved = torch.stack([total.any() for total in totals]).any()  # stays on the device: no wait
    moved = dual.placement.totals([moved.long()])[0] > 0
    return [
        torch.where(moved, total, Magnitude().score(w).float())
        for total, w in zip(totals, weights, strict=True)
    ]


@torch.no_grad()
def draw_scores(dual: PrunedModule, group: Group, step: int) -> list[Tensor]:
    """Random scores of the group's weights, a function of the seed, the weight and the step."""
    pairs = [(dual.get_parameter(name), draw_of(dual, name, step)) for name in group.parameters]
    return [uniform(tuple(w.shape), draw.key, w.device, draw.start) for w, draw in pairs]


def draw_of(dual: PrunedModule, name: str, step: int) -> Draw:
    """The key of the random scores of one weight."""
    return Draw(dual.plan.train.seed, name, step, dual.placement.start(name))


# -- thresholds, reserves, growth ----------------------------------------------------------------


def has_threshold(plan: Plan) -> bool:
    """Whether a path sees its weights through a soft threshold."""
    return any(path.view.soft for path in plan.paths)


def buffers_of(group: Group, plan: Plan) -> tuple[str, ...]:
    """The suffixes of the buffers next to each weight of the group, without masks and scores."""
    soft = ("threshold", "scale") if has_threshold(plan) else ()
    return soft + (("reserve",) if group.reserve else ())


@torch.no_grad()
def add_rule_state(model: nn.Module, plan: Plan) -> None:
    """Register the buffers, with nothing pruned yet; store weights as theta under a `param`."""
    axes = _filter_axes(plan)
    for group in plan.groups:
        for parameter in group.parameters:
            (owner, name), weight = _owner(model, parameter), model.get_parameter(parameter)
            mask = torch.ones_like(weight, dtype=torch.bool)
            starts: dict[str, Callable[[], Tensor]] = {
                "threshold": lambda: weight.new_zeros(()),
                "scale": lambda: soft_scale(weight, mask, axes[parameter]),
                "reserve": lambda: ~mask,
            }
            for kind in buffers_of(group, plan):
                owner.register_buffer(f"{name}_{kind}", starts[kind]().detach())
            if group.param is not None:
                weight.copy_(group.param.stored(weight))


@torch.no_grad()
def remove_rule_state(model: nn.Module, plan: Plan) -> None:
    """Undo add_rule_state."""
    for group in plan.groups:
        for parameter in group.parameters:
            owner, name = _owner(model, parameter)
            for kind in buffers_of(group, plan):
                del owner._buffers[f"{name}_{kind}"]
            if group.param is not None:
                weight = model.get_parameter(parameter)
                weight.copy_(group.param.weight(weight))


def soft_of(module: nn.Module, parameter: str, plan: Plan) -> Soft | None:
    """The soft threshold of a weight; None if no path has one."""
    if not has_threshold(plan):
        return None
    return Soft(
        module.get_buffer(f"{parameter}_threshold"), module.get_buffer(f"{parameter}_scale")
    )


@torch.no_grad()
def grown_masks(dual: PrunedModule, group: Group, scores: list[Tensor], step: int) -> list[Tensor]:
    """The masks of a group that drops and grows weights; the first ones, at step 0, are random."""
    regrow = group.regrow
    if step == 0 or regrow is None:
        return make_masks(group, draw_scores(dual, group, 0), 0, placement=dual.placement)
    keeps = keeps_at(group, step)
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
def follow_masks(dual: PrunedModule, group: Group, scores: list[Tensor], step: int) -> None:
    """Update all state that depends on the group's masks."""
    weights: list[Tensor] = [dual.get_parameter(name) for name in group.parameters]
    masks = masks_of(dual, group)
    if group.reserve:
        # Masks of the kept weights and the reserve together.
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


# -- penalties -----------------------------------------------------------------------------------


@torch.no_grad()
def add_penalties(dual: PrunedModule, step: int) -> None:
    """Add the gradients of the plan's penalties to those of the weights, after the backward pass.

    They are gradients of the stored numbers, theta where the rule has `param = power`.
    """
    for group in dual.plan.groups:
        for penalty in group.penalties:
            weight = penalty.weight_at(step, dual.plan.num_steps)
            if not weight:
                continue
            norms = _norms_of_rows(dual, group, penalty)
            axes = _filter_axes(dual.plan) if penalty.needs_axis else None
            for i, name in enumerate(group.parameters):
                w, part, own = _part_of(dual, name, penalty)
                more: dict[str, Any] = {} if norms is None else {"norm": norms[i]}
                more |= {} if axes is None else {"axis": axes[name]}
                own = penalty.gradient(own, **more).where(part, w.new_zeros(()))
                w.grad = weight * own if w.grad is None else w.grad.add_(own, alpha=weight)
    for rest in dual.plan.train.penalties:
        _add_to_rest(dual, rest, rest.word.weight_at(step, dual.plan.num_steps))


def _add_to_rest(dual: PrunedModule, rest: RestPenalty, weight: float) -> None:
    """A penalty on weights that no rule prunes, and on their twins. One without a gradient in this
    step, whose path does not run, is not moved, as by weight decay."""
    for parameter, axis in zip(rest.parameters, rest.axes, strict=True) if weight else ():
        for name in with_twins(dual.plan, parameter):
            w = dual.get_parameter(name)
            if w.grad is not None:
                more: dict[str, Any] = {"axis": axis} if rest.word.needs_axis else {}
                w.grad.add_(rest.word.gradient(w, **more), alpha=weight)


def _part_of(dual: PrunedModule, name: str, penalty: Penalty) -> tuple[Tensor, Tensor, Tensor]:
    """The weight, the mask of the part that the penalty acts on, and the weight times that mask."""
    w, mask = dual.get_parameter(name), dual.get_buffer(f"{name}_mask")
    part = {"kept": mask, "pruned": ~mask}.get(penalty.part)
    if part is None:
        part = dual.get_buffer(f"{name}_reserve")
    return w, part, torch.where(part, w, w.new_zeros(()))


def _norms_of_rows(dual: PrunedModule, group: Group, penalty: Penalty) -> Tensor | None:
    """The norm of each weight over the rows of all processes, in one exchange; None where this
    process holds whole weights, or the penalty needs no norm."""
    if dual.placement.is_whole or not penalty.needs_norm:
        return None
    parts = (_part_of(dual, name, penalty)[2] for name in group.parameters)
    norms = [part.to(torch.promote_types(part.dtype, torch.float32)).norm() for part in parts]
    return dual.placement.totals([torch.stack(norms).square()])[0].sqrt()


def masks_of(dual: PrunedModule, group: Group) -> list[Tensor]:
    """The masks of the group's weights, in their order."""
    return [dual.get_buffer(f"{name}_mask") for name in group.parameters]


def _ranked(masks: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
    return [
        torch.where(mask, torch.inf, score.double())
        for mask, score in zip(masks, scores, strict=True)
    ]


def _owner(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    """The module that has the parameter, and the name of the parameter in it."""
    owner, _, name = parameter.rpartition(".")
    return model.get_submodule(owner), name


def _filter_axes(plan: Plan) -> dict[str, int]:
    return {layer.parameter: layer.out_axis for layer in plan.layers}
