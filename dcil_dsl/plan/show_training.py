"""Print the routes, the losses and the training of a Plan.

In:   a Plan, and the page.
Out:  the private modules, the phases with their cost, the losses, the optimizer, the claims.
Not:  show.py puts the parts together.
"""

from __future__ import annotations

from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.cost import (
    ON_CORES,
    bound,
    in_pattern,
    left_out,
    runs_forward_alone,
    step_cost,
    training_cost,
)
from dcil_dsl.plan.records import Path, Phase, PlanFields, RestPenalty
from dcil_dsl.plan.text import Page, percent, setting, stretch
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.weight_groups import WeightGroup

PARTS = {
    "kept": "kept weights",
    "reserve": "the reserve among the pruned",
    "pruned": "pruned weights",
    "rest": "weights no rule prunes",
}


def show_privates(plan: PlanFields, page: Page) -> str:
    """The modules that each path has for itself."""
    if not plan.privates:
        return ""
    others = [path.name for path in plan.paths if path.name != plan.deploy]
    twins = ", ".join(f"<name>__{path}" for path in others) or "no twin: one path"
    lines = [f"private modules: the original on path {plan.deploy}; {twins}"]
    for init, words in (("copy", "copies"), ("fresh", "freshly initialised")):
        names = ", ".join(private.module for private in plan.privates if private.init == init)
        if names:
            lines += wrap(
                f"{words}: {names}", page.width, subsequent_indent="  ", break_long_words=False
            )
    return "\n".join(lines)


def show_phases(plan: PlanFields) -> str:
    """The paths; for each phase who runs, what a step costs, who learns from whom."""
    lines = ["paths"]
    for path in plan.paths:
        deployed = "; deployed" if path.name == plan.deploy else ""
        draws = ", the random numbers of the first path" if path.random == "shared" else ""
        sees = f"{path.name} = {path.view.called}: y = f(x; {seen_words(path)})"
        lines.append(f"  {sees}{draws}{deployed}")
        if path.compute == "kept":
            lines += [f"    {line}" for line in _kept_alone(plan)]
    lines += [f"  {line}" for line in _teachers(plan)]
    parts = PARTS if plan.groups else {"rest": "weights"}
    if not any(group.reserve for group in plan.groups):
        parts = {part: words for part, words in parts.items() if part != "reserve"}
    for phase in plan.phases:
        runs = "runs" if len(phase.paths) == 1 else "run"
        also = "".join(f", {name} teaches" for name in phase.teachers)
        lines.append(
            f"{stretch(phase.window, plan)}: {', '.join(phase.paths)} {runs}{also}, a step is "
            f"{_passes(step_cost(plan, phase))} of arithmetic {bound(plan)}"
        )
        lines += [f"  {words} {teachers(plan, phase, part)}" for part, words in parts.items()]
    lines.append(
        f"training cost: {training_cost(plan):.2f} dense runs {bound(plan)}, by arithmetic (zeros "
        "do not make dense kernels faster)"
    )
    lines += [f"  {line}" for line in cost_elsewhere(plan)]
    if runs_forward_alone(plan):
        lines.append("  a forward pass alone counts for a third of a dense step of its network")
    return "\n".join(lines)


def _teachers(plan: PlanFields) -> list[str]:
    """What each teacher is, and how much of the model's arithmetic it takes."""
    lines = []
    for teacher in plan.teachers:
        size = "not counted, and taken as that of the model"
        if teacher.size is not None:
            size = f"{teacher.size:.3g} times that of the model"
        lines.append(f"{teacher.name} = {teacher.network.summary()}: only teaches")
        lines.append(f"  the arithmetic of its forward pass is {size}")
    return lines


def _kept_alone(plan: PlanFields) -> list[str]:
    """In how many layers a path computes less, and where."""
    pruned = count(sum(len(group.parameters) for group in plan.groups), "pruned layer")
    out, pattern = left_out(plan.groups, plan.layers), in_pattern(plan.groups, plan.layers)
    lines = [f"computes the kept units alone in {len(out)} of {pruned}"]
    some = f"the 2:4 pattern of {len(pattern)} of {pruned}"
    if pattern and plan.train.precision in ON_CORES:
        more = [
            f"multiplies by {some} on a GPU's sparse tensor cores,",
            "in the forward pass alone; elsewhere they are computed in full, with the same result",
        ]
    else:
        precision = f"in {plan.train.precision}, and sparse tensor cores take bf16 and fp16"
        more = [f"computes {some} in full:", precision] if pattern else []
    return lines * bool(out or not pattern) + more


def cost_elsewhere(plan: PlanFields) -> list[str]:
    """What the run costs on other machines, where sparse tensor cores make it cheaper: one line."""
    cost = training_cost(plan, whole=in_pattern(plan.groups, plan.layers))
    if cost == training_cost(plan):
        return []
    return [f"{cost:.2f} where no sparse tensor cores multiply by its 2:4 pattern"]


def seen_words(path: Path) -> str:
    """The formula of what the path computes with."""
    return path.view.formula or f"{path.view.describe()} where m, else 0"


def _passes(cost: float) -> str:
    return f"{cost:.4g} dense step" + ("" if cost == 1 else "s")


def teachers(plan: PlanFields, phase: Phase, part: str) -> str:
    """Whose gradients a part of the weights follows: "learn from 0.9 * dense + 0.1 * sparse"."""
    terms = [
        path.name if share == 1 else f"{share:g} * {path.name}"
        for path, shares in zip(plan.paths, phase.shares, strict=True)
        if (share := getattr(shares, part)) != 0
    ]
    return f"learn from {' + '.join(terms)}" if terms else "get no gradient"


def show_losses(plan: PlanFields) -> str:
    """Each term, and when it is open."""
    lines = ["losses"]
    for loss in plan.losses:
        factor = "" if loss.coefficient == 1 else f"{loss.coefficient:g} * "
        words = loss.term.summary()
        more = f", {words}" if words else ""
        lines.append(f"  {factor}{loss.name}{more}: {stretch(loss.window, plan)}")
    return "\n".join(lines)


def show_training(plan: PlanFields, page: Page) -> str:
    """The optimizer, the learning rate, and what else the steps do."""
    train = plan.train
    optimizer = ", ".join(
        f"{name} {setting(value)}" for name, value in train.optimizer if value is not False
    )
    rate = train.rate
    words = rate.summary()
    warmup = (
        f" after {count(rate.num_warmup, 'step')} of warm-up from {rate.warmup_from:g}"
        if rate.num_warmup
        else ""
    )
    more = f"precision {train.precision}, seed {train.seed}"
    more += f", gradients clipped to {train.clip:g}" if train.clip is not None else ""
    more += f", weights averaged with {train.ema:g}" if train.ema is not None else ""
    return "\n".join(
        [
            f"train    {train.optimizer.called}: {optimizer}",
            *(line for group in train.groups for line in _group(group, page)),
            *(line for penalty in train.penalties for line in _penalty(penalty, page)),
            *show_integrator(plan, page),
            *_told("average", train.average.summary() if train.average else "", page),
            *_told("mirror", train.mirror.summary() if train.mirror else "", page),
            *_told("stop", _ending(plan), page),
            *_told("reset", _resets(plan), page),
            *_told("balance", train.balance.summary() if train.balance else "", page),
            *(
                f"{'rate' if not i else '':8} {line}"
                for i, line in enumerate(wrap(words + warmup, page.width - 9))
            ),
            f"         {more}",
        ]
    )


def _group(group: WeightGroup, page: Page) -> list[str]:
    whose = "" if group.layers_named is None else f" of {group.layers_named}"
    return _told("", f"{count(len(group.parameters), 'parameter')}{whose}: {group.summary()}", page)


def _penalty(penalty: RestPenalty, page: Page) -> list[str]:
    word = penalty.word
    whose = "no rule prunes" if word.of is None else f"no rule prunes, of {word.of}"
    rising = f", rising in {count(word.stairs, 'step')}" if word.stairs else ""
    number = count(len(penalty.parameters), "parameter")
    words = f"{word.weight:g} times {word.summary()} of {number} that {whose}{rising}"
    return _told("penalty", words, page)


def _ending(plan: PlanFields) -> str:
    stop = plan.train.stop
    best = "the best checkpoint at full sparsity is evaluated and exported"
    words = [stop.summary()] if stop is not None else []
    return "; ".join(words + [best] * (plan.train.checkpoint == "best"))


def _resets(plan: PlanFields) -> str:
    steps = ", ".join(f"{step:,}" for step in plan.train.reset)
    noun = "step" if len(plan.train.reset) == 1 else "steps"
    return f"the optimizer begins anew at {noun} {steps}" if steps else ""


def _told(label: str, words: str, page: Page) -> list[str]:
    lines = wrap(words, page.width - 9)
    return [f"{'' if i else label:8} {line}" for i, line in enumerate(lines)]


def show_integrator(plan: PlanFields, page: Page) -> list[str]:
    """How the gradient of a step is made of several."""
    integrator = plan.train.integrator
    if integrator is None:
        return []
    words = integrator.summary()
    if integrator.players == "each":
        words += ", kept and pruned weights in turn while the others stand still"
    times = count(integrator.num_gradients, "evaluation")
    words += f"; {times} a step; momentum, weight decay and penalties come after"
    return _told("gradient", words, page)


def show_expectations(plan: PlanFields) -> str:
    """The author's claims about the result."""
    claims = (
        f"{claim.metric} {claim.compare} "
        f"{percent(claim.value) if METRICS[claim.metric].is_share else f'{claim.value:.6g}'}"
        for claim in plan.expect
    )
    return f"expect   {', '.join(claims)}" if plan.expect else ""
