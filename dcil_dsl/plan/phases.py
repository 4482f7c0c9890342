"""Which paths run and which weights learn from which path, over time.

In:   the recipe's paths, losses and `update` rules, in units of time.
Out:  WeightedLoss, Path and Phase parts of the Plan, in steps; E306, E309, E312, E313, E320, W305
      and W306 in a Diagnostics.
Not:  no budgets (allocate.py); a ramp that the run cuts off is E305 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dcil_dsl.diagnostics import Diagnostics, Label
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.source import Span
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.cost import in_pattern, left_out
from dcil_dsl.plan.schedule import last_refresh
from dcil_dsl.words.rates import Multistep
from dcil_dsl.words.units import Time
from dcil_dsl.words.word import RunLength

PARTS = ("kept", "reserve", "pruned", "rest")


def resolve_losses(
    recipe: r.Recipe, paths: tuple[p.Path, ...], run: RunLength, report: Diagnostics
) -> tuple[p.WeightedLoss, ...]:
    """The loss terms with their windows in steps, each under a name of its own.

    A term is open in the steps in which all of its paths run, and takes the examples that all of
    them see. E313 for a term whose paths never run in the same step.
    """
    by_name = {path.name: path for path in paths}
    batch = {path.name: path.batch for path in paths}
    batch |= dict.fromkeys((teacher.name for teacher in recipe.teachers), 1.0)
    losses: list[p.WeightedLoss] = []
    named: Counter[str] = Counter()
    for loss in recipe.losses:
        term = loss.term.in_steps(run)
        name = term.label
        named[name] += 1
        window = _window(loss, run.steps_per_epoch, run.num_steps)
        own = [by_name[path] for path in term.paths if path in by_name]  # teachers always run
        strided = [path for path in own if path.every > 1]
        apart = next((path for path in strided if path.offset != strided[0].offset), None)
        if apart is not None:
            report.add(
                "E313",
                f"`{name}` is never open: path `{strided[0].name}` and path `{apart.name}` run in "
                "different steps",
                loss.span,
                help="give both the same `offset`",
            )
        losses.append(
            p.WeightedLoss(
                name=f"{name}#{named[name]}" if named[name] > 1 else name,
                coefficient=loss.coefficient,
                term=term,
                window=_strided(window, strided[0]) if strided else window,
                batch=min((batch[path] for path in term.paths), default=1.0),
            )
        )
    return tuple(losses)


def _strided(window: p.Window, path: p.Path) -> p.Window:
    return window.model_copy(update={"every": path.every, "offsets": (path.offset,)})


def resolve_paths(
    recipe: r.Recipe, steps_per_epoch: int, num_steps: int, report: Diagnostics
) -> tuple[p.Path, ...]:
    """The paths with their strides in steps. E313 where two have different strides, or an offset
    is not below its stride."""
    paths = []
    for path in recipe.paths:
        every = path.every.to_steps(steps_per_epoch, num_steps) if path.every else 1
        offset = path.offset.to_steps(steps_per_epoch, num_steps) if path.offset else 0
        if offset >= max(every, 1) and path.every is not None:
            report.add(
                "E313",
                f"path `{path.name}` runs every {count(max(every, 1), 'step')}, and its offset is "
                f"{count(offset, 'step')}",
                path.span,
                help="an offset is below `every`; losses start later with `from`",
            )
        paths.append(
            p.Path(
                name=path.name,
                view=path.view,
                random=path.random,
                batch=path.batch.fraction if path.batch else 1.0,
                size=path.size.fraction if path.size else 1.0,
                every=max(every, 1),
                offset=offset if offset < max(every, 1) else 0,
                compute=path.compute,
            )
        )
    strided = [path for path in paths if path.every > 1]
    other = next((path for path in strided if path.every != strided[0].every), None)
    if other is not None:
        first = strided[0]
        report.add(
            "E313",
            f"path `{first.name}` runs every {first.every} steps, path `{other.name}` every "
            f"{other.every}",
            recipe.mix_span,
            help="give both the same `every`",
        )
    return tuple(paths)


def check_left_out(
    recipe: r.Recipe,
    groups: tuple[p.Group, ...],
    layers: tuple[p.PlanLayer, ...],
    report: Diagnostics,
) -> None:
    """E320 where `compute = kept` would skip nothing, or what a score needs."""
    for path in recipe.paths:
        if path.compute != "kept":
            continue
        if not left_out(groups, layers) and not in_pattern(groups, layers):
            report.add(
                "E320",
                f"path `{path.name}` would skip nothing",
                path.span,
                label="no rule prunes filters or input channels of a convolution or linear layer, "
                "or a linear layer to 2:4",
                help="only filters or channels can be skipped (`granularity=filter`), or half of "
                "a linear layer whose sides are multiples of 16, by `2:4`",
            )
        for group in groups:
            if group.pattern is not None:
                continue  # all of its gradients are computed
            if group.buffered_score is not None and group.buffered_score.path == path.name:
                report.add(
                    "E320",
                    f"path `{path.name}` would skip weights that the rule at {group.rule} scores",
                    path.span,
                    label=f"`{group.buffered_score.score.called}` needs the gradients of pruned "
                    "weights too",
                )


def resolve_phases(
    recipe: r.Recipe,
    losses: tuple[p.WeightedLoss, ...],
    steps_per_epoch: int,
    num_steps: int,
    report: Diagnostics,
) -> tuple[p.Phase, ...]:
    """The run cut at every moment where a path starts or stops to run or an update changes.

    A path runs while a loss that needs it is open. A part of the weights with two rules at
    one moment is E306, a moment at which nothing runs E309, a part that never learns W305.
    """
    updates = [(u, _window(u, steps_per_epoch, num_steps)) for u in recipe.updates]
    windows = [loss.window for loss in losses] + [window for _, window in updates]
    turns = {0} | {w.start for w in windows} | {w.stop for w in windows if w.stop is not None}
    cuts = sorted(turn for turn in turns if 0 <= turn < num_steps)

    has_reserve = any(isinstance(rule, r.PruneRule) and rule.reserve for rule in recipe.rules)
    phases: list[p.Phase] = []
    for inside in _stretches(cuts, losses):
        if not inside.num_steps(num_steps):
            continue  # too short for a multiple of `every`, or for anything between two
        start, every = inside.start, inside.every
        step = next(step for step in range(start, start + every + 1) if inside.covers(step))
        needed = {name for loss in losses if loss.window.covers(step) for name in loss.term.paths}
        running = tuple(path.name for path in recipe.paths if path.name in needed)
        teachers = tuple(one.name for one in recipe.teachers if one.name in needed)
        if not running:
            report.add(
                "E309",
                f"no loss is open from step {step:,}, so no path runs",
                recipe.mix_span,
                help="`mix` needs a loss without `until`",
            )
            continue
        rows = {part: _rule_for(part, step, updates, report) for part in PARTS}
        if rows["rest"] is None:
            rows["rest"] = rows["kept"]  # weights that no rule prunes learn like kept ones
        if rows["reserve"] is None and has_reserve:
            rows["reserve"] = rows["pruned"]
        shares = tuple(
            p.Shares(**{part: _share(rows[part], path.name, running) for part in PARTS})
            for path in recipe.paths
        )
        phase = p.Phase(window=inside, paths=running, shares=shares, teachers=teachers)
        same = phases and phases[-1].model_copy(update={"window": inside}) == phase
        if same and phases[-1].window.every == every == 1:
            inside = inside.model_copy(update={"start": phases.pop().window.start})
        phases.append(phase.model_copy(update={"window": inside}))
    _warn_of_idle_parts(recipe, phases, report)
    return tuple(phases)


def _stretches(cuts: list[int], losses: tuple[p.WeightedLoss, ...]) -> Iterator[p.Window]:
    """Each stretch, in parts where some losses open every few steps: one for each offset, and one
    for all other steps."""
    for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
        strided = [
            loss.window
            for loss in losses
            if loss.window.start <= start
            and (loss.window.stop is None or start < loss.window.stop)
            and loss.window.every > 1
        ]
        if not strided:
            yield p.Window(start=start, stop=stop)
            continue
        every = min(window.every for window in strided)  # all have the same, or it is E313
        same = [window for window in strided if window.every == every]
        offsets = tuple(sorted({window.offsets[0] for window in same}))
        for offset in offsets:
            yield p.Window(start=start, stop=stop, every=every, offsets=(offset,))
        yield p.Window(start=start, stop=stop, every=every, offsets=offsets, others=True)


def _window(item: r.UpdateRule | r.LossRule, steps_per_epoch: int, num_steps: int) -> p.Window:
    start = item.start.to_steps(steps_per_epoch, num_steps) if item.start else 0
    stop = item.stop.to_steps(steps_per_epoch, num_steps) if item.stop else None
    return p.Window(start=start, stop=stop)


def _rule_for(
    part: str, step: int, updates: list[tuple[r.UpdateRule, p.Window]], report: Diagnostics
) -> r.UpdateRule | None:
    rules = [update for update, window in updates if part in update.parts and window.covers(step)]
    if len(rules) > 1:
        report.add(
            "E306",
            f"two rules update the {part} weights at step {step:,}",
            rules[1].span,
            others=(Label(rules[0].span, "the first"),),
            help="give each a window with `from` and `until`",
        )
    return rules[0] if rules else None


def _share(rule: r.UpdateRule | None, path: str, running: tuple[str, ...]) -> float:
    if rule is None or path not in running:
        return 0.0
    return sum(share for name, share in rule.shares if name == path)


def _warn_of_idle_parts(recipe: r.Recipe, phases: list[p.Phase], report: Diagnostics) -> None:
    """W305 for each part that gets no gradient in the whole run. Without a rule that prunes there
    are no kept and pruned weights, only weights; `update kept` then trains them."""
    prunes = any(isinstance(rule, r.PruneRule) for rule in recipe.rules)
    for part in ("kept", "pruned") if prunes else ("rest",):
        if not phases or any(getattr(row, part) for phase in phases for row in phase.shares):
            continue
        own = (part,) if prunes else ("kept", "rest")
        rules = [update for update in recipe.updates if set(own) & set(update.parts)]
        if rules and not any(share for rule in rules for _, share in rule.shares):
            continue  # `update pruned by 0 * sparse` states that it is intended
        report.add(
            "W305",
            f"the {part} weights never learn" if prunes else "the weights never learn",
            recipe.mix_span,
            label="their `update` names no path that runs"
            if rules
            else f"there is no `update {part} by ...`",
        )


# -- scores ----------------------------------------------------------------------------------------


def check_score(
    rule: r.PruneRule,
    group: p.Group,
    phases: tuple[p.Phase, ...],
    num_steps: int,
    report: Diagnostics,
) -> None:
    """E312 where every mask of the run is made before the first gradient that it could look at."""
    score = group.buffered_score
    if score is None or score.path is None:
        return
    path = score.path
    runs = [phase.window.start for phase in phases if path in phase.paths]
    last = last_refresh(group, num_steps - 1)
    if not runs or last <= runs[0]:
        when = f"first runs at step {runs[0]:,}" if runs else "never runs"
        report.add(
            "E312",
            f"`{score.score.called}` has no effect: the last mask is made at step {last:,}, "
            f"path `{path}` {when}",
            rule.at("score" if group.regrow is None else "regrow"),
            label="the gradient of a step affects only masks made after it",
        )


# -- times after the end ---------------------------------------------------------------------------


def warn_of_unreached(
    recipe: r.Recipe, steps_per_epoch: int, num_steps: int, report: Diagnostics
) -> None:
    """Losses and updates that never open, rates and resets that never come, masks that never
    freeze."""

    def warn(what: str, time: Time | None, span: Span | None, label: str = "") -> bool:
        step = -1 if time is None else time.to_steps(steps_per_epoch, num_steps)
        if step >= num_steps:
            fact = f"{what} {count(step, 'step')}, the run has {num_steps:,}"
            report.add("W306", fact, span, label=label)
        return step >= num_steps

    for loss in recipe.losses:
        warn("this loss starts after", loss.start, loss.span)
    for update in recipe.updates:
        warn("this update begins after", update.start, update.span)
    rate = recipe.train.lr
    warn("the warm-up takes", rate.warmup, recipe.rate_span, "the rate is still rising at the end")
    for moment in rate.at if isinstance(rate, Multistep) else ():
        if warn("the rate changes after", moment, recipe.rate_span):
            break  # the later ones neither
    for moment in recipe.train.reset:
        if warn("the optimizer begins anew after", moment, recipe.train_span):
            break
    for rule in recipe.rules:
        if isinstance(rule, r.PruneRule):
            warn("masks freeze after", rule.freeze, rule.at("freeze"))
