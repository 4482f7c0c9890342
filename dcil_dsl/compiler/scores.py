"""The scores of a Dual: their buffers, and what a rule's weights score at a step.

In:   a model or a Dual, the plan, a step.
Out:  `<weight>_score` beside each weight whose score is more than a function of its value;
      scores, one tensor a weight.
Not:  no formulas (masking/score.py), no masks. Gradients are added up in the backward pass
      (masking/split.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.score import score_weights
from dcil_dsl.plan.plan import Group, Phase, Plan
from dcil_dsl.words.scores import Draw, Magnitude, uniform

UNSCALE = "loss_unscale"  # one over the scale of the loss: fp16 multiplies losses


def scored_groups(plan: Plan) -> tuple[Group, ...]:
    """The groups that keep a score."""
    return tuple(group for group in plan.groups if group.kept_score is not None)


def has_gradient_scores(plan: Plan) -> bool:
    return any(group.kept_score.path is not None for group in scored_groups(plan))


def add_scores(model: nn.Module, plan: Plan) -> None:
    """Register in the model, in place, what the graphs and begin_step will change: zeros.

    float32, whatever the weights are; saved with the state, moved with the model, no parameter.
    InputError where a score needs the gradient of a weight that does not learn.
    """
    for group in scored_groups(plan):
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            weight = model.get_parameter(parameter)
            if group.kept_score.path is not None and not weight.requires_grad:
                raise InputError(
                    f"`{parameter}` is scored by {group.kept_score.score.called} and has no "
                    "gradient: "
                    "requires_grad is False",
                    help="`keep` it, or prune it with `score = magnitude`",
                )
            score = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
            model.get_submodule(owner).register_buffer(f"{name}_score", score)
    if has_gradient_scores(plan):
        device = next(model.parameters()).device
        model.register_buffer(UNSCALE, torch.ones((), device=device), persistent=False)


def remove_scores(model: nn.Module, plan: Plan) -> None:
    """What add_scores added, taken away."""
    for group in scored_groups(plan):
        for parameter in group.parameters:
            owner, _, name = parameter.rpartition(".")
            del model.get_submodule(owner)._buffers[f"{name}_score"]
    if has_gradient_scores(plan):
        del model._buffers[UNSCALE]
        model._non_persistent_buffers_set.discard(UNSCALE)


@torch.no_grad()
def begin_scores(dual: nn.Module, phase: Phase, loss_scale: Tensor | None) -> None:
    """What a step does to scores before its gradients come: moving averages fade.

    A score of gradients stands still while its path does not run. That of a weight's size takes
    in the weight that the step begins with:  S <- a S + (1 - a) |w|.
    """
    for group in scored_groups(dual.plan):
        decay, path = group.kept_score.average, group.kept_score.path
        if decay is None or (path is not None and path not in phase.paths):
            continue
        if group.regrow is not None:
            continue  # the last step's gradient, which masks look at first: clear_growth
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
def clear_growth(dual: nn.Module, phase: Phase) -> None:
    """Make room for this step's gradient where only the last one says where to grow."""
    for group in scored_groups(dual.plan):
        if group.regrow is not None and group.regrow.gradient_path in phase.paths:
            for name in group.parameters:
                dual.get_buffer(f"{name}_score").zero_()


@torch.no_grad()
def scores_of(dual: nn.Module, group: Group, step: int) -> list[Tensor]:
    """The scores of the group's weights as a mask made at `step` compares them.

    While every score of the group is zero, as before the first gradient, magnitude stands in.
    """
    weights = [dual.get_parameter(name) for name in group.parameters]
    if not group.score.has_state:
        draws = [draw_of(dual, name, step) for name in group.parameters]
        pairs = zip(weights, draws, strict=True)
        return [score_weights(w, group.score, draw) for w, draw in pairs]
    totals = [dual.get_buffer(f"{name}_score") for name in group.parameters]
    moved = torch.stack([total.any() for total in totals]).any()  # not read: no wait for a device
    moved = dual.placement.totals([moved.long()])[0] > 0
    return [
        torch.where(moved, total, Magnitude().score(w).float())
        for total, w in zip(totals, weights, strict=True)
    ]


@torch.no_grad()
def draw_scores(dual: nn.Module, group: Group, step: int) -> list[Tensor]:
    """Scores by chance for each of the group's weights, the same whenever they are asked for."""
    pairs = [(dual.get_parameter(name), draw_of(dual, name, step)) for name in group.parameters]
    return [uniform(tuple(w.shape), draw.key, w.device, draw.start) for w, draw in pairs]


def draw_of(dual: nn.Module, name: str, step: int) -> Draw:
    """What chance depends on for one weight."""
    return Draw(dual.plan.train.seed, name, step, dual.placement.start(name))
